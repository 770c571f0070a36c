"""Concatenation beside torch's: channels, orders of memory, element types, and all that torch asks of an operator."""

from __future__ import annotations

from typing import Any

import pytest

import tvm_conv3d

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)
from torch_operators import DTYPES, LAST, all_ours, by_torch, orders  # noqa: E402
from tvm_conv3d.runtime import concatenation  # noqa: E402
from tvm_conv3d.torch.operators.concatenation import CONCATENATION  # noqa: E402

CHANNELS = [(32, 32), (1, 1), (3, 16, 8), (5,), (20, 33, 1, 16), (320, 320), (1, 2, 3, 4, 5, 6, 7, 8), (17, 100)]


def check(inputs: Any) -> None:
    result = CONCATENATION(inputs)
    assert torch.equal(result, torch.cat(list(inputs), 1))
    assert result.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(channels: Any) -> None:
    for batch, *size in ((2, 3, 4, 5), (1, 1, 1, 1), (1, 1, 7, 1), (3, 11, 12, 13)):
        check([torch.randn(batch, count, *size) for count in channels])
    assert all_ours(4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_types_and_orders_of_memory(dtype: Any) -> None:
    for channels in ((5, 16), (1, 1, 40)):
        inputs = [torch.randn(2, count, 3, 5, 6).to(dtype) for count in channels]
        for each in zip(*map(orders, inputs), strict=True):
            check(each)
        mixed = [each for order, each in zip((1, 0, 3), inputs, strict=False) for each in [list(orders(each))[order]]]
        check(mixed)
    assert ours.counters().torch == {}


def test_the_same_tensor_twice() -> None:
    x = torch.randn(1, 6, 3, 4, 5)
    check([x, x, x])
    result = CONCATENATION([x.contiguous(memory_format=LAST)])
    assert torch.equal(result, x)
    result.zero_()
    assert x.abs().sum() > 0


def test_bits_are_copied() -> None:
    x = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45]).view(1, 4, 1, 1, 1)
    result = CONCATENATION([x, -x])
    assert torch.equal(result.view(torch.int32), torch.cat([x, -x], 1).view(torch.int32))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int) -> None:
    tvm_conv3d.set_num_threads(threads)
    check([torch.randn(1, count, 20, 20, 20) for count in (32, 7, 32)])


# What torch computes, or refuses


def test_what_torch_computes() -> None:
    whole = torch.randn(1, 2, 3, 4, 5)
    for inputs, words in (
        ([whole, torch.randn(1, 0, 3, 4, 5)], "without elements"),
        ([torch.randn(0, 2, 3, 4, 5)] * 2, "without elements"),
        ([whole, whole.double()], "several types"),
        ([whole.int(), whole.int()], "numbers of type torch.int32"),
        ([whole] * (concatenation.MOST + 1), f"At most {concatenation.MOST}"),
    ):
        check(inputs)
        assert by_torch("concatenation", words)
        ours.reset_counters()
    sample = torch.randn(2, 3, 4, 5)
    assert torch.equal(CONCATENATION([sample, sample]), torch.cat([sample, sample], 0))
    assert by_torch("4 axes")


def test_what_torch_refuses_is_refused_in_its_words() -> None:
    x = torch.randn(1, 2, 3, 4, 5)
    for inputs in ([x, torch.randn(1, 2, 3, 4, 6)], [x, torch.randn(2, 2, 3, 4, 5)]):
        with pytest.raises(RuntimeError) as theirs:
            torch.cat(inputs, 1)
        with pytest.raises(RuntimeError) as mine:
            CONCATENATION(inputs)
        assert str(mine.value) == str(theirs.value)


# What torch asks of an operator


def test_torchs_own_checks_of_operators() -> None:
    for memory_format in (torch.contiguous_format, LAST):
        inputs = [torch.randn(2, count, 3, 4, 5).to(memory_format=memory_format) for count in (4, 7)]
        torch.library.opcheck(CONCATENATION, (inputs,))
        torch.library.opcheck(CONCATENATION, ([inputs[0], inputs[1].requires_grad_()],))


def test_gradients() -> None:
    inputs = [torch.randn(2, count, 3, 2, 3, dtype=torch.float64, requires_grad=True) for count in (2, 3)]
    assert torch.autograd.gradcheck(lambda *inputs: CONCATENATION(inputs), inputs, fast_mode=True)
    assert by_torch("a gradient is needed")


@pytest.mark.parametrize("axes", [(0, 0), (None, 1), (3, None)])
def test_vmap(axes: Any) -> None:
    inputs = [torch.randn(2, count, 3, 2, 3) for count in (2, 3)]
    several = [
        each if axis is None else torch.stack([each, 2 * each, -each], axis)
        for each, axis in zip(inputs, axes, strict=True)
    ]
    result = torch.vmap(lambda *inputs: CONCATENATION(inputs), axes)(*several)
    for number in range(3):
        check_one = [x if axis is None else x.select(axis, number) for x, axis in zip(several, axes, strict=True)]
        assert torch.equal(result[number], torch.cat(check_one, 1))


def test_vmap_over_samples_without_a_batch() -> None:
    x = torch.randn(4, 2, 3, 2, 3)
    assert torch.equal(torch.vmap(lambda x: CONCATENATION([x, x]))(x), torch.cat([x, x], 1))


def test_compile_without_a_break() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x, y: CONCATENATION([x, y]), fullgraph=True, backend="aot_eager")
    for size in ((3, 4, 5), (6, 5, 4)):
        x, y = (torch.randn(2, count, *size) for count in (4, 7))
        assert torch.equal(compiled(x, y), torch.cat([x, y], 1))
    x.requires_grad_()
    compiled(x, y).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    torch.compiler.reset()


def test_autocast_is_torchs() -> None:
    x = torch.randn(1, 4, 2, 3, 4)
    for kinds in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        inputs = [x.to(kind) for kind in kinds]
        with torch.autocast("cpu"):
            result, theirs = CONCATENATION(inputs), torch.cat(inputs, 1)
        assert result.dtype == theirs.dtype and torch.equal(result, theirs)
