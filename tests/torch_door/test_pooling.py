"""Pooling beside torch's: windows, orders of memory, element types, and all that torch asks of an operator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import tvm_conv3d

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn import functional as F  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_operators import DTYPES, LAST, all_ours, by_torch, check, check_compiled, orders  # noqa: E402
from tvm_conv3d.torch.operators.pooling import POOLING  # noqa: E402

NONE, ONE = (0, 0, 0), (1, 1, 1)

#: Kernel, stride, padding, dilation.
WINDOWS = [
    ((2, 2, 2), (2, 2, 2), NONE, ONE),
    ((2, 2, 2), (), NONE, ONE),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), ONE),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1), ONE),
    ((1, 3, 2), (1, 2, 3), (0, 1, 1), ONE),
    ((2, 1, 4), (3, 1, 1), (1, 0, 2), ONE),
    ((1, 1, 1), (2, 2, 2), NONE, ONE),
    ((5, 4, 6), (2, 3, 4), (2, 2, 3), ONE),
    ((2, 3, 2), (1, 2, 1), (1, 1, 1), (3, 2, 4)),
    ((3, 2, 3), (2, 1, 3), (1, 0, 1), (1, 4, 3)),
]
SIZES = [(7, 9, 11), (8, 8, 16), (9, 10, 37)]


def pooled(x: Any, kind: str, window: Any, ceil: bool = False, include: bool = True, divisor: int | None = None) -> Any:
    return POOLING(x, kind, *window, ceil, include, divisor)


def wanted(x: Any, kind: str, window: Any, ceil: bool = False, include: bool = True, divisor: int | None = None) -> Any:
    x, (kernel, stride, padding, dilation) = x.double().contiguous(), window
    if kind == "max":
        return F.max_pool3d(x, kernel, stride or None, padding, dilation, ceil)
    return F.avg_pool3d(x, kernel, stride or None, padding, ceil, include, divisor)


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 33])
@pytest.mark.parametrize("window", WINDOWS)
def test_maxima(window: Any, channels: int) -> None:
    for size, ceil in itertools.product(SIZES, (False, True)):
        x = torch.randn(2, channels, *size)
        check(pooled(x, "max", window, ceil), wanted(x, "max", window, ceil), exact=True)
    assert all_ours(2 * len(SIZES))


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 33])
@pytest.mark.parametrize("window", [window for window in WINDOWS if window[-1] == ONE])
def test_averages(window: Any, channels: int) -> None:
    cases = list(itertools.product(SIZES[::2], (False, True), (False, True), (None, 5, -3)))
    for size, ceil, include, divisor in cases:
        x = torch.randn(2, channels, *size)
        how = ("average", window, ceil, include, divisor)
        check(pooled(x, *how), wanted(x, *how))
    assert all_ours(len(cases))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_element_types_and_orders_of_memory(kind: str, dtype: Any) -> None:
    for channels in (1, 5, 16):
        x = torch.randn(2, channels, 6, 7, 9).to(dtype)
        for each in orders(x):
            for window in WINDOWS[:3]:
                result = pooled(each, kind, window)
                assert result.dtype == dtype
                check(result, wanted(x, kind, window), exact=kind == "max")
    assert ours.counters().torch == {}


@pytest.mark.parametrize(
    "shape", [(1, 4, 1, 1, 1), (3, 1, 1, 1, 5), (1, 1, 1, 1, 1), (2, 7, 2, 1, 300), (1, 700, 3, 2, 5)]
)
def test_odd_shapes(shape: Any) -> None:
    for kind in ("max", "average"):
        for window in (((1, 1, 1), ONE, NONE, ONE), ((1, 1, 1), (1, 1, 4), NONE, ONE)):
            x = torch.randn(shape)
            check(pooled(x, kind, window), wanted(x, kind, window), exact=kind == "max")
    # of an average torch wants more cells than the kernel has
    x = torch.randn(shape)
    window = ((2, 2, 2), (2, 2, 2), ONE, ONE)
    check(pooled(x, "max", window), wanted(x, "max", window), exact=True)
    assert all_ours(5)


def test_rows_longer_than_a_task_takes() -> None:
    x = torch.randn(1, 24, 3, 3, 900)
    for window in (
        WINDOWS[0],
        WINDOWS[3],
        ((1, 1, 40), (1, 1, 3), (0, 0, 20), ONE),
        ((1, 1, 3), ONE, (0, 0, 1), (1, 1, 17)),
    ):
        check(pooled(x, "max", window), wanted(x, "max", window), exact=True)
    wide = torch.randn(1, 4000, 2, 2, 9)
    check(
        pooled(wide, "max", ((1, 1, 8), ONE, NONE, ONE)), wanted(wide, "max", ((1, 1, 8), ONE, NONE, ONE)), exact=True
    )
    assert all_ours(5)
    ours.reset_counters()
    widest = ((1, 1, 9), ONE, NONE, ONE)
    check(pooled(wide, "max", widest), wanted(wide, "max", widest), exact=True)
    assert by_torch("9 cells with 4000 channels")


def test_windows_of_padding_only_are_minus_infinity() -> None:
    x = torch.randn(1, 4, 3, 3, 1)
    window = ((1, 1, 2), ONE, (0, 0, 1), (1, 1, 2))
    result = pooled(x, "max", window)
    assert (result == -torch.inf).all()
    check(result, wanted(x, "max", window), exact=True)
    assert all_ours(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_numbers_that_are_not_finite(kind: str, dtype: Any) -> None:
    x = torch.randn(1, 9, 8, 9, 10).to(dtype)
    for number in (torch.nan, torch.inf, -torch.inf):
        x[torch.rand(x.shape) < 0.02] = number
    for window in (WINDOWS[0], WINDOWS[3], WINDOWS[4]):
        result = pooled(x, kind, window)
        check(result, wanted(x, kind, window), exact=kind == "max")
        assert result.isnan().any()


def test_large_means_do_not_hide_what_is_averaged() -> None:
    x = torch.full((1, 16, 8, 8, 8), 2.0**24) + 2.0 * torch.randint(0, 2, (1, 16, 8, 8, 8))
    check(pooled(x, "average", WINDOWS[0]), wanted(x, "average", WINDOWS[0]))
    # the largest numbers of a half type, whose sum it can't hold
    big = torch.full((1, 16, 4, 4, 4), 60000.0, dtype=torch.float16)
    assert (pooled(big, "average", WINDOWS[0]) == 60000).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int) -> None:
    tvm_conv3d.set_num_threads(threads)
    x = torch.randn(2, 16, 12, 13, 14)
    for kind in ("max", "average"):
        check(pooled(x, kind, WINDOWS[2]), wanted(x, kind, WINDOWS[2]), exact=kind == "max")


def test_results_are_fresh() -> None:
    x = torch.randn(1, 16, 4, 4, 4).contiguous(memory_format=LAST)
    result = pooled(x, "max", ((1, 1, 1), ONE, NONE, ONE))
    assert torch.equal(result, x) and result.data_ptr() != x.data_ptr()


# What torch computes, or refuses


def test_what_torch_computes() -> None:
    for x, words in (
        (torch.randn(4, 6, 6, 6), "4 axes"),
        (torch.randn(0, 4, 6, 6, 6), "without elements"),
    ):
        for kind in ("max", "average"):
            torch.testing.assert_close(pooled(x, kind, WINDOWS[0]), wanted(x, kind, WINDOWS[0]).float())
        assert by_torch("pooling", words)
        ours.reset_counters()


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (((2, 2, 2), (2, 2, 2), (2, 0, 0), ONE), "pad should be at most half"),
        (((9, 2, 2), (2, 2, 2), NONE, ONE), "Output size is too small"),
        (((0, 2, 2), (2, 2, 2), NONE, ONE), "kernel size should be greater than zero"),
        (((2, 2), (2, 2, 2), NONE, ONE), "kernel_size must either be a single int, or a tuple of three ints"),
        (((2, 2, 2), (2, 0, 2), NONE, ONE), "stride should"),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(window: Any, words: str) -> None:
    x = torch.randn(1, 4, 6, 6, 6)
    for kind in ("max", "average"):
        with pytest.raises(RuntimeError) as theirs:
            wanted(x, kind, window)
        with pytest.raises(RuntimeError) as mine:
            pooled(x, kind, window)
        assert str(mine.value) == str(theirs.value)
        assert kind == "average" or words in str(mine.value)


def test_arguments_that_are_not_torchs_are_refused() -> None:
    x = torch.randn(1, 4, 6, 6, 6)
    for kind, dilation, divisor, words in (
        ("median", ONE, None, "must be one of max, average. Received: 'median'"),
        ("max", ONE, 3, "divisor_override=3"),
        ("average", (1, 2, 1), None, r"dilation=\[1, 2, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            POOLING(x, kind, (2, 2, 2), (), NONE, dilation, False, True, divisor)
    with pytest.raises(RuntimeError, match="divisor must be not zero"):
        pooled(x, "average", WINDOWS[0], divisor=0)


# What torch asks of an operator

ARGUMENTS = [("max", *WINDOWS[2], True, True, None), ("average", *WINDOWS[4], False, False, None)]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_torchs_own_checks_of_operators(arguments: Any) -> None:
    for shape in ((2, 4, 5, 6, 7), (1, 1, 5, 6, 7)):
        for memory_format in (torch.contiguous_format, LAST):
            x = torch.randn(shape).to(memory_format=memory_format)
            torch.library.opcheck(POOLING, (x, *arguments))
            torch.library.opcheck(POOLING, (x.requires_grad_(), *arguments))


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_gradients(arguments: Any) -> None:
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: POOLING(x, *arguments), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: POOLING(x, *arguments), x, fast_mode=True)
    assert POOLING(x, *arguments).is_contiguous(memory_format=LAST)
    assert by_torch("a gradient is needed")
    ours.reset_counters()
    with torch.no_grad():
        assert not POOLING(x, *arguments).requires_grad
    assert all_ours(1)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_transforms(arguments: Any) -> None:
    x = torch.randn(2, 3, 5, 4, 6)

    def total(x: Any) -> Any:
        return (POOLING(x, *arguments) ** 2).sum()

    def total_by_torch(x: Any) -> Any:
        kind, kernel, stride, padding, dilation, *rest = arguments
        return (wanted(x, kind, (kernel, stride, padding, dilation), *rest) ** 2).sum().float()

    torch.testing.assert_close(torch.func.grad(total)(x), torch.func.grad(total_by_torch)(x), rtol=1e-4, atol=1e-5)
    tangents = [torch.func.jvp(f, (x,), (x,))[1] for f in (total, total_by_torch)]
    torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-4)
    mapped = torch.randn(4, 2, 3, 5, 4, 6)
    for axis in (0, 1, 5):
        result = torch.vmap(lambda x: POOLING(x, *arguments), axis)(mapped.movedim(0, axis))
        torch.testing.assert_close(result, torch.stack([POOLING(each, *arguments) for each in mapped]))
    result = torch.vmap(lambda x: POOLING(x, *arguments))(x)
    torch.testing.assert_close(result, POOLING(x, *arguments))


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_compile_without_a_break(arguments: Any) -> None:
    check_compiled(POOLING, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_autocast_is_torchs(kind: str, dtype: Any) -> None:
    x = torch.randn(1, 4, 6, 6, 6).to(dtype)
    by_torch = F.max_pool3d if kind == "max" else F.avg_pool3d
    with torch.autocast("cpu"):
        result, theirs = pooled(x, kind, WINDOWS[0]), by_torch(x, 2)
    assert result.dtype == theirs.dtype
    torch.testing.assert_close(result, theirs)


def test_meta_tensors() -> None:
    result = pooled(torch.empty(2, 4, 6, 6, 6, device="meta"), "max", WINDOWS[0])
    assert result.shape == (2, 4, 3, 3, 3) and result.is_contiguous(memory_format=LAST)
