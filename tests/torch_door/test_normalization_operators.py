"""What torch asks of the operators of normalizations: gradients, compilers, fake tensors, vmap and autocast."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from normalizations import KINDS, PLAIN, close, exact, vectors  # noqa: E402
from tvm_conv3d.torch.operators.normalization import NORMALIZATION, NORMALIZATION_  # noqa: E402

F = torch.nn.functional
LAST = torch.channels_last_3d

# Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_torchs(kind: str) -> None:
    x = torch.randn(2, 4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    four = vectors(4, kind == "given", dtype=torch.float64)
    weight, bias = (v.requires_grad_() for v in four[2:])
    residual, slope = torch.randn_like(x).requires_grad_(), torch.tensor([0.2], dtype=torch.float64, requires_grad=True)

    def plain(x: Any, weight: Any, bias: Any, residual: Any, slope: Any) -> Any:
        rest = (*four[:2], weight, bias, 1e-5, residual, slope, ["add", "prelu"])
        return NORMALIZATION(x, KINDS[kind](4) or 1, *rest)

    def in_place(x: Any, *others: Any) -> Any:
        y = x * 2
        rest = (*four[:2], *others[:2], 1e-5, *others[2:], ["add", "prelu"])
        NORMALIZATION_(y, KINDS[kind](4) or 1, *rest)
        return y

    for function in (plain, in_place):
        assert torch.autograd.gradcheck(function, (x, weight, bias, residual, slope), fast_mode=True)
    assert ours.counters().ours == 0 and set(ours.counters().torch) == {"normalization: a gradient is needed"}
    with torch.no_grad():
        assert not plain(x, weight, bias, residual, slope).requires_grad
    assert ours.counters().ours == 1


def test_leaves_that_need_gradients_are_not_written_over() -> None:
    x = torch.randn(1, 4, 3, 3, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        NORMALIZATION_(x, 4, *PLAIN)
    y = torch.randn(1, 4, 3, 3, 3).requires_grad_() * 1
    z = y.square()
    with torch.no_grad():
        NORMALIZATION_(y, 4, *PLAIN)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_inference_tensors() -> None:
    normal = torch.randn(1, 4, 3, 3, 3)
    with torch.inference_mode():
        x = normal.clone()
        for each in (x, normal):
            wanted = exact(each, 4, 1e-5, *[None] * 4)
            NORMALIZATION_(each, 4, *PLAIN)
            close(each, wanted)


# Compilers, transforms, autocast


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_torchs_own_checks_of_operators(kind: str, memory_format: Any) -> None:
    x = torch.randn(2, 4, 3, 4, 5).to(memory_format=memory_format)
    four = vectors(4, kind == "given")
    rest = (1e-5, torch.randn(2, 4, 3, 4, 5), torch.tensor([0.1]), ["add", "prelu"])
    torch.library.opcheck(NORMALIZATION, (x, KINDS[kind](4) or 1, *four, *rest))
    torch.library.opcheck(NORMALIZATION_, (x, KINDS[kind](4) or 1, *four, *rest))
    four[2].requires_grad_()
    torch.library.opcheck(NORMALIZATION, (x.requires_grad_(), KINDS[kind](4) or 1, *four, *rest))


def test_compile_without_a_break() -> None:
    torch.compiler.reset()
    weight = torch.randn(6)

    def network(x: Any) -> Any:
        y = NORMALIZATION(x, 6, None, None, weight, None, 1e-5, None, None, ["relu"])
        NORMALIZATION_(y, 3, None, None, None, None, 1e-5, x, None, ["add"])
        return y + 1

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for size in (4, 5, 6):
        for memory_format in (torch.contiguous_format, LAST):
            x = torch.randn(2, 6, size, 4, 5).to(memory_format=memory_format)
            wanted, before = network(x), x.clone()
            assert torch.equal(compiled(x), wanted) and torch.equal(x, before)
    torch.compiler.reset()


def test_fake_tensors_have_the_results_strides() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for shape, groups in product(((2, 4, 3, 4, 5), (1, 1, 3, 4, 5), (2, 4, 1, 1, 6), (2, 8, 1, 1, 1)), (1, 2)):
        if shape[1] % groups == 0 and np.prod(shape[2:]) * shape[1] > groups:
            x = torch.randn(shape)
            with FakeTensorMode() as mode:
                fake = NORMALIZATION(mode.from_tensor(x), groups, *PLAIN)
            real = NORMALIZATION(x, groups, *PLAIN)
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (3, 2), (None, 1)])
def test_vmap(in_dims: tuple[Any, ...]) -> None:
    shape = (2, 4, 5, 6, 7)
    x, residual = (torch.randn(shape) if dim is None else torch.randn(3, *shape).movedim(0, dim) for dim in in_dims)

    def plain(x: Any, residual: Any) -> Any:
        return NORMALIZATION(x, 4, *PLAIN[:5], residual, None, ["add"])

    def in_place(x: Any, residual: Any) -> Any:
        x = x.clone()
        NORMALIZATION_(x, 4, *PLAIN[:5], residual, None, ["add"])
        return x

    mapped = torch.vmap(plain, in_dims)(x, residual)
    for i in range(3):
        one = [t if dim is None else t.select(dim, i) for t, dim in zip((x, residual), in_dims, strict=True)]
        torch.testing.assert_close(mapped[i], plain(*one))
    if in_dims[0] is None:
        with pytest.raises(RuntimeError, match="use normalization"):
            torch.vmap(in_place, in_dims)(x, residual)
    else:
        torch.testing.assert_close(torch.vmap(in_place, in_dims)(x, residual), mapped)


def test_vmap_over_parameters() -> None:
    x, weights = torch.randn(2, 4, 5, 6, 7), torch.randn(3, 4)
    mapped = torch.vmap(lambda w: NORMALIZATION(x, 4, None, None, w, None, 1e-5, None, None, []))(weights)
    for result, weight in zip(mapped, weights, strict=True):
        close(result, exact(x, 4, 1e-5, None, None, weight, None))


def test_autocast_leaves_types_alone() -> None:
    x, four = torch.randn(2, 4, 5, 6, 7), vectors(4, False)
    with torch.autocast("cpu", torch.bfloat16):
        for data in (x, x.to(torch.bfloat16)):
            result, theirs = NORMALIZATION(data, 4, *four, *PLAIN[4:]), F.instance_norm(data, None, None, *four[2:])
            assert result.dtype == theirs.dtype == data.dtype
    assert ours.counters() == ours.Counters(2, {})
