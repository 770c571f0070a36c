"""The operators of gradients: against torch's float64, all types and orders of memory, and what torch asks of them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_geometries import GEOMETRIES, given  # noqa: E402
from torch_operators import DTYPES, orders  # noqa: E402
from tvm_conv3d.torch.operators.convolution import CONVOLUTION  # noqa: E402
from tvm_conv3d.torch.operators.definitions import DATA_GRADIENT, WEIGHT_GRADIENT  # noqa: E402

#: Largest errors, relative to the largest element.
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def operands(name: str, dtype: Any = torch.float32) -> tuple[Any, Any, Any]:
    """Gradient of the result, input and weight."""
    x, weight, _ = (tensor.detach() for tensor in given(GEOMETRIES[name], dtype))
    return torch.randn_like(CONVOLUTION(x, weight, None, *GEOMETRIES[name])), x, weight


def wanted(name: str, gradient: Any, x: Any, weight: Any) -> tuple[Any, ...]:
    """The gradients of input, weight and bias in torch's float64."""
    stride, padding, *rest = GEOMETRIES[name]
    tensors = [tensor.double().requires_grad_() for tensor in (x, weight)]
    bias = torch.zeros(gradient.shape[1], dtype=torch.float64, requires_grad=True)
    padded = tensors[0]
    if len(padding) == 6:
        padded = torch.nn.functional.pad(padded, [padding[i] for i in (4, 5, 2, 3, 0, 1)])
        padding = (0, 0, 0)
    result = torch.ops.aten.convolution(padded, tensors[1], bias, stride, padding, *rest)
    return torch.autograd.grad(result, (*tensors, bias), gradient.double())


def close(result: Any, expected: Any, dtype: Any = torch.float32) -> None:
    assert result.dtype == dtype
    largest = expected.abs().max().item()
    torch.testing.assert_close(result.double(), expected.double(), rtol=0, atol=BOUNDS[dtype] * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_against_float64(name: str, dtype: Any) -> None:
    gradient, x, weight = operands(name, dtype)
    of_x, of_weight, of_bias = wanted(name, gradient, x, weight)
    close(DATA_GRADIENT(gradient, weight, x.shape[2:], *GEOMETRIES[name]), of_x, dtype)
    close(WEIGHT_GRADIENT(gradient, x, weight.shape[2:], *GEOMETRIES[name]), of_weight, dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, torch.zeros(gradient.shape[1], dtype=dtype))]
    found = torch.autograd.grad(CONVOLUTION(*leaves, *GEOMETRIES[name]), leaves, gradient)
    for one, other in zip(found, (of_x, of_weight, of_bias), strict=True):
        close(one, other, dtype)
    assert ours.counters().torch == {}


def test_any_order_of_memory() -> None:
    gradient, x, weight = operands("strided")
    of_x, of_weight, _ = wanted("strided", gradient, x, weight)
    for each in orders(gradient):
        found = DATA_GRADIENT(each, weight, x.shape[2:], *GEOMETRIES["strided"])
        close(found, of_x)
        assert found.is_contiguous(memory_format=torch.channels_last_3d) or found.is_contiguous()
        for other in orders(x):
            close(WEIGHT_GRADIENT(each, other, weight.shape[2:], *GEOMETRIES["strided"]), of_weight)
    last = gradient.contiguous(memory_format=torch.channels_last_3d)
    found = DATA_GRADIENT(last, weight, x.shape[2:], *GEOMETRIES["strided"])
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_of_gradients(name: str) -> None:
    gradient, x, weight = (tensor.requires_grad_() for tensor in operands(name, torch.float64))
    geometry = GEOMETRIES[name]

    def of_x(*tensors: Any) -> Any:
        return DATA_GRADIENT(*tensors, x.shape[2:], *geometry)

    def of_weight(*tensors: Any) -> Any:
        return WEIGHT_GRADIENT(*tensors, weight.shape[2:], *geometry)

    for function, tensors in ((of_x, (gradient, weight)), (of_weight, (gradient, x))):
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)
    assert ours.counters().torch == {}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_torchs_own_checks_of_operators(name: str) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        gradient, x, weight = (tensor.to(memory_format=memory_format).requires_grad_() for tensor in operands(name))
        torch.library.opcheck(DATA_GRADIENT, (gradient, weight, x.shape[2:], *GEOMETRIES[name]))
        torch.library.opcheck(WEIGHT_GRADIENT, (gradient, x, weight.shape[2:], *GEOMETRIES[name]))


def test_several_gradients_at_once() -> None:
    gradient, x, weight = operands("strided")
    leaves = [tensor.requires_grad_() for tensor in (x, weight)]
    result = CONVOLUTION(*leaves, None, *GEOMETRIES["strided"])
    several = torch.stack([gradient, 2 * gradient, gradient.flip(0)])
    found = torch.autograd.grad(result, leaves, several, is_grads_batched=True, retain_graph=True)
    for number, each in enumerate(several):
        for one, other in zip(found, torch.autograd.grad(result, leaves, each, retain_graph=True), strict=True):
            torch.testing.assert_close(one[number], other)


def test_small_patches_are_torchs_and_counted() -> None:
    conv = ours.Conv3d(2, 12, 4, stride=4)
    x = torch.randn(1, 2, 8, 8, 8, requires_grad=True)
    gradient = torch.randn(1, 12, 2, 2, 2)
    found = torch.autograd.grad(conv(x), x, gradient)[0]
    close(found, torch.nn.grad.conv3d_input(x.shape, conv.weight.double(), gradient.double(), 4))
    assert ours.counters() == ours.Counters(2, {"data gradient: patches of few channels": 1})


def test_a_gradient_of_another_shape_is_refused_in_torchs_words() -> None:
    gradient, x, weight = operands("plain")
    with pytest.raises(RuntimeError):
        DATA_GRADIENT(gradient[..., 1:], weight, x.shape[2:], *GEOMETRIES["plain"])


def test_without_elements() -> None:
    gradient, x, weight = operands("plain")
    found = DATA_GRADIENT(gradient[:0], weight, x.shape[2:], *GEOMETRIES["plain"])
    assert found.shape == (0, *x.shape[1:])
    of_weight = WEIGHT_GRADIENT(gradient[:0], x[:0], weight.shape[2:], *GEOMETRIES["plain"])
    assert of_weight.shape == weight.shape and not of_weight.any()


def test_weights_of_a_step_are_forgotten_with_it() -> None:
    from tvm_conv3d.runtime import kept_weights

    conv = ours.Conv3d(4, 4, 3)
    x = torch.randn(1, 4, 5, 5, 5, requires_grad=True)
    sizes = []
    for _ in range(4):
        conv(x).sum().backward()
        sizes.append(len(kept_weights.STORE))
        with torch.no_grad():
            conv.weight.mul_(0.9)
    assert sizes[0] == sizes[-1]
