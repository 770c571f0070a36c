"""What training needs beside convolutions, beside torch's functions in float64: numbers, gradients, compilers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn import functional as F  # noqa: E402  (needs torch)

from torch_operators import check, orders  # noqa: E402
from tvm_conv3d.torch.operators import training  # noqa: E402
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION  # noqa: E402
from tvm_conv3d.torch.operators.training import MAX_POOLING, RELU_GRADIENT  # noqa: E402

GEOMETRY = ((1, 1, 1), (1, 0, 1), (1, 1, 1), False, (0, 0, 0), 1)


def maxima(x: Any, window: Any = (2, 2, 2)) -> Any:
    return MAX_POOLING(x, window)[0]


def rectified(x: Any, weight: Any, bias: Any) -> Any:
    return FUSED_CONVOLUTION(x, weight, bias, [], 0.0, None, None, ["relu"], *GEOMETRY)


def operands(dtype: Any) -> list[Any]:
    return [torch.randn(shape, dtype=dtype) for shape in ((2, 3, 4, 6, 5), (4, 3, 3, 1, 3), (4,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maxima_in_all_orders_of_memory(dtype: Any) -> None:
    for each in orders(torch.randn(2, 5, 6, 7, 9, dtype=dtype)):
        x, twin = (t.detach().clone().requires_grad_() for t in (each, each.double()))
        y, wanted = maxima(x, (2, 3, 1)), F.max_pool3d(twin, (2, 3, 1))
        check(y, wanted, exact=True)
        outer = torch.randn_like(wanted)
        y.backward(outer.to(dtype))
        wanted.backward(outer.to(dtype).double())
        assert torch.equal(x.grad.double(), twin.grad)


def test_gradients_of_gradients() -> None:
    x = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(maxima, x)
    assert torch.autograd.gradgradcheck(maxima, x)
    given = [each.requires_grad_() for each in operands(torch.float64)]
    assert torch.autograd.gradcheck(rectified, given)
    assert torch.autograd.gradgradcheck(rectified, given)


def test_a_convolution_and_its_relu_have_the_gradients_of_the_two() -> None:
    given = operands(torch.float32)
    ours, theirs = ([t.detach().to(dtype).requires_grad_() for t in given] for dtype in (torch.float32, torch.float64))
    y, wanted = rectified(*ours), F.relu(F.conv3d(*theirs, padding=GEOMETRY[1]))
    assert y.grad_fn.name() == "_WithReLUBackward"
    outer = torch.randn_like(y)
    y.backward(outer)
    wanted.backward(outer.double())
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), right.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_relu_of_half_types(dtype: Any) -> None:
    y, gradient = torch.randn(1, 2, 3, 4, 5).to(dtype), torch.randn(1, 2, 3, 4, 5).to(dtype)
    assert torch.equal(RELU_GRADIENT(gradient, y), torch.where(y > 0, gradient, 0))


def test_what_maxima_do_not_take() -> None:
    x = torch.randn(1, 2, 4, 4, 4)
    assert training.takes(x, (2, 2, 2)) and training.takes(x.double(), (4, 4, 4))
    for other, window in ((x[0], (2, 2, 2)), (x.half(), (2, 2, 2)), (x, (5, 1, 1)), (x[:0], (2, 2, 2))):
        assert not training.takes(other, window)


def test_compiled_without_a_break() -> None:
    def step(x: Any, weight: Any, bias: Any) -> Any:
        return maxima(rectified(x, weight, bias))

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, theirs = ([each.clone().requires_grad_() for each in given] for given in [operands(torch.float32)] * 2)
    y, wanted = compiled(*ours), step(*theirs)
    torch.testing.assert_close(y, wanted)
    y.sum().backward()
    wanted.sum().backward()
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, right.grad)
    torch.compiler.reset()


def test_what_torch_asks_of_operators() -> None:
    x = torch.randn(2, 3, 5, 4, 6, requires_grad=True)
    y, cells = MAX_POOLING(x.detach(), (2, 2, 2))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(MAX_POOLING, (x, (2, 2, 2)), test_utils=tests)
    gradient = torch.randn_like(y)
    torch.library.opcheck(training.MAX_POOLING_GRADIENT, (gradient, cells, (5, 4, 6), (2, 2, 2)), test_utils=tests[:2])
    torch.library.opcheck(RELU_GRADIENT, (gradient, y), test_utils=tests[:2])
