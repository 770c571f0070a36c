"""Interpolation beside torch's: ratios, orders of memory, element types, and all that torch asks of an operator."""

from __future__ import annotations

from typing import Any

import pytest

import tvm_conv3d

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn import functional as F  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_operators import DTYPES, LAST, all_ours, by_torch, check, check_compiled, orders  # noqa: E402
from tvm_conv3d.torch.operators.interpolation import INTERPOLATION  # noqa: E402

#: Sizes of the input and of the result.
SIZES = [
    ((4, 5, 6), (8, 10, 12)),
    ((4, 5, 6), (4, 10, 6)),
    ((4, 5, 6), (7, 3, 13)),
    ((9, 8, 21), (3, 4, 5)),
    ((1, 1, 1), (3, 2, 5)),
    ((3, 2, 5), (1, 1, 1)),
    ((1, 7, 1), (1, 1, 9)),
    ((4, 5, 6), (4, 5, 6)),
    ((2, 3, 40), (5, 7, 127)),
]
#: Mode and align_corners.
MODES = [("nearest", False), ("trilinear", False), ("trilinear", True)]


def interpolated(x: Any, size: Any, mode: str, align: bool, scales: Any = ()) -> Any:
    return INTERPOLATION(x, size, scales, mode, align)


def wanted(x: Any, size: Any, mode: str, align: bool) -> Any:
    return F.interpolate(x.double().contiguous(), size, mode=mode, align_corners=align if mode == "trilinear" else None)


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 33])
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_sizes(mode: str, align: bool, channels: int) -> None:
    for size, out_size in SIZES:
        x = torch.randn(2, channels, *size)
        check(interpolated(x, out_size, mode, align), wanted(x, out_size, mode, align), exact=mode == "nearest")
    assert all_ours(len(SIZES))


@pytest.mark.parametrize("factors", [(2.0, 2.0, 2.0), (1.7, 2.3, 0.6), (3.0, 1.0, 0.25), (0.5, 2.9, 1.1)])
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_scales(mode: str, align: bool, factors: Any) -> None:
    x = torch.randn(2, 5, 7, 8, 9)
    corners = align if mode == "trilinear" else None
    for recompute in (False, True):
        theirs = F.interpolate(
            x.double(), scale_factor=factors, mode=mode, align_corners=corners, recompute_scale_factor=recompute
        )
        result = interpolated(x, theirs.shape[2:], mode, align, () if recompute else factors)
        check(result, theirs, exact=mode == "nearest")
    assert all_ours(2)


def test_nearest_cells_are_torchs_at_any_ratio() -> None:
    x = torch.arange(1.0, 51)[:, None, None].expand(1, 1, 50, 1, 1)
    for out_size in range(1, 160):
        size = (out_size, 1, 1)
        assert torch.equal(interpolated(x, size, "nearest", False), F.interpolate(x, size))
        scales = (out_size / 50 + 0.003, 1.0, 1.0)
        assert torch.equal(
            interpolated(x, size, "nearest", False, scales), torch.ops.aten.upsample_nearest3d(x, size, *scales)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_element_types_and_orders_of_memory(mode: str, align: bool, dtype: Any) -> None:
    for channels in (1, 5, 16):
        x = torch.randn(2, channels, 6, 7, 9).to(dtype)
        for each in orders(x):
            for out_size in ((12, 14, 18), (5, 13, 9)):
                result = interpolated(each, out_size, mode, align)
                assert result.dtype == dtype
                check(result, wanted(x, out_size, mode, align), exact=mode == "nearest")
    assert ours.counters().torch == {}


@pytest.mark.parametrize(("mode", "align"), MODES)
def test_rows_longer_than_a_task_takes(mode: str, align: bool) -> None:
    for channels, width, out_width in ((24, 900, 1800), (3000, 7, 9), (24, 900, 401), (700, 200, 3)):
        x = torch.randn(1, channels, 2, 1, width)
        size = (2, 2, out_width)
        check(interpolated(x, size, mode, align), wanted(x, size, mode, align), exact=mode == "nearest")
    assert all_ours(4)
    ours.reset_counters()
    x = torch.randn(1, 33000, 1, 1, 2)
    check(interpolated(x, (1, 1, 3), mode, align), wanted(x, (1, 1, 3), mode, align), exact=mode == "nearest")
    assert by_torch("interpolation", "33000 channels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_numbers_that_are_not_finite(mode: str, align: bool, dtype: Any) -> None:
    x = torch.randn(1, 9, 8, 9, 10).to(dtype)
    for number in (torch.nan, torch.inf, -torch.inf):
        x[torch.rand(x.shape) < 0.01] = number
    for out_size in ((16, 18, 20), (8, 9, 20), (5, 7, 6), (8, 9, 10)):
        result = interpolated(x, out_size, mode, align)
        check(result, wanted(x, out_size, mode, align), exact=mode == "nearest")
        assert result.isnan().any()


def test_zeros_keep_their_sign_and_nan_its_bits_where_cells_are_copied() -> None:
    x = torch.tensor([-0.0, 0.0, 1e-45, torch.nan]).view(1, 1, 1, 1, 4)
    result = interpolated(x, (1, 1, 8), "nearest", False)
    assert torch.equal(result.view(torch.int32), x.repeat_interleave(2, 4).view(torch.int32))


@pytest.mark.parametrize("align", [False, True])
def test_large_means_do_not_hide_what_is_interpolated(align: bool) -> None:
    x = torch.randn(1, 16, 4, 5, 6) + 1e6
    result = interpolated(x, (8, 10, 12), "trilinear", align)
    torch.testing.assert_close(result.double(), wanted(x, (8, 10, 12), "trilinear", align), rtol=3e-7, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads: int) -> None:
    tvm_conv3d.set_num_threads(threads)
    x = torch.randn(2, 16, 6, 7, 8)
    for mode, align in MODES:
        check(interpolated(x, (12, 14, 16), mode, align), wanted(x, (12, 14, 16), mode, align), mode == "nearest")


def test_results_are_fresh() -> None:
    x = torch.randn(1, 16, 4, 4, 4).contiguous(memory_format=LAST)
    for mode, align in MODES:
        result = interpolated(x, (4, 4, 4), mode, align)
        assert torch.equal(result, x) and result.data_ptr() != x.data_ptr()


# What torch computes, or refuses


def test_what_torch_computes() -> None:
    for mode, align in MODES:
        x = torch.randn(0, 4, 3, 3, 3)
        assert interpolated(x, (6, 6, 6), mode, align).shape == (0, 4, 6, 6, 6)
    assert by_torch("without elements")
    ours.reset_counters()
    octets = torch.randint(0, 255, (1, 2, 3, 4, 5), dtype=torch.uint8)
    assert torch.equal(interpolated(octets, (6, 6, 6), "nearest", False), F.interpolate(octets, (6, 6, 6)))
    assert by_torch("numbers of type torch.uint8")


@pytest.mark.parametrize(("mode", "align"), MODES)
def test_what_torch_refuses_is_refused_in_its_words(mode: str, align: bool) -> None:
    name = f"upsample_{'nearest' if mode == 'nearest' else 'trilinear'}3d"
    for shape, size in (((1, 4, 3, 3, 3), (6, 0, 6)), ((1, 4, 3, 3, 3), (6, 6)), ((4, 3, 3, 3), (6, 6, 6))):
        x = torch.randn(shape)
        with pytest.raises(RuntimeError) as theirs:
            getattr(torch.ops.aten, name).vec(x, size, *([align] if mode == "trilinear" else []), None)
        with pytest.raises(RuntimeError) as mine:
            interpolated(x, size, mode, align)
        assert str(mine.value) == str(theirs.value)


def test_arguments_that_are_not_torchs_are_refused() -> None:
    x = torch.randn(1, 4, 3, 3, 3)
    for arguments, words in (
        (((6, 6, 6), (), "area", False), "must be one of nearest, trilinear. Received: 'area'"),
        (((6, 6, 6), (2.0, 2.0), "nearest", False), r"three numbers, or none. Received: \[2.0, 2.0\]"),
        (((6, 6, 6), (), "nearest", True), "align_corners=True"),
    ):
        with pytest.raises(ValueError, match=words):
            INTERPOLATION(x, *arguments)


# What torch asks of an operator

ARGUMENTS = [
    ((9, 5, 12), (), "nearest", False),
    ((10, 12, 7), (), "trilinear", False),
    ((9, 7, 3), (), "trilinear", True),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_torchs_own_checks_of_operators(arguments: Any) -> None:
    for shape in ((2, 4, 5, 6, 7), (1, 1, 5, 6, 7)):
        for memory_format in (torch.contiguous_format, LAST):
            x = torch.randn(shape).to(memory_format=memory_format)
            torch.library.opcheck(INTERPOLATION, (x, *arguments))
            torch.library.opcheck(INTERPOLATION, (x.requires_grad_(), *arguments))


@pytest.mark.parametrize(
    "arguments",
    [*ARGUMENTS, ((10, 8, 7), (2.01, 2.0, 1.2), "trilinear", False), ((3, 8, 7), (0.6, 2.0, 1.2), "nearest", False)],
)
def test_gradients(arguments: Any) -> None:
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: INTERPOLATION(x, *arguments), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: INTERPOLATION(x, *arguments), x, fast_mode=True)
    assert INTERPOLATION(x, *arguments).is_contiguous(memory_format=LAST)
    assert by_torch("a gradient is needed")


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_transforms(arguments: Any) -> None:
    x = torch.randn(2, 3, 5, 4, 6)
    # linear: its derivative along x is itself
    tangent = torch.func.jvp(lambda x: INTERPOLATION(x, *arguments), (x,), (x,))[1]
    torch.testing.assert_close(tangent, INTERPOLATION(x, *arguments))
    mapped = torch.randn(4, 2, 3, 5, 4, 6)
    result = torch.vmap(lambda x: INTERPOLATION(x, *arguments), 2)(mapped.movedim(0, 2))
    torch.testing.assert_close(result, torch.stack([INTERPOLATION(each, *arguments) for each in mapped]))


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_compile_without_a_break(arguments: Any) -> None:
    check_compiled(INTERPOLATION, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_autocast_is_torchs(mode: str, align: bool, dtype: Any) -> None:
    x = torch.randn(1, 4, 6, 6, 6).to(dtype)
    with torch.autocast("cpu"):
        result = interpolated(x, (12, 12, 12), mode, align)
        theirs = F.interpolate(x, (12, 12, 12), mode=mode, align_corners=align if mode == "trilinear" else None)
    assert result.dtype == theirs.dtype
    torch.testing.assert_close(result, theirs, rtol=2e-2, atol=2e-2)
