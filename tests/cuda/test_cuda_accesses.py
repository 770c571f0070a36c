"""Bank conflicts and sectors: counted right, and few in the schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cuda_checks import default_plans
from cuda_kernels import elementwise, matmul, transpose
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.diagnostics.cuda_accesses import Access, accesses_of, average, sectors, wavefronts
from tvm_conv3d.diagnostics.cuda_needed import needed_share, needed_shares
from tvm_conv3d.engine.artifact import MAIN
from tvm_conv3d.engine.cuda.lower import DeviceSource, lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.scheduling import scheduled_module
from tvm_conv3d.functional.gradient_arguments import data_gradient_of, weight_gradient_of
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

TARGET = "cuda:sm_80"


def layer(name: str, dtype: str = "float32") -> Conv3DSpec:
    return next(replace(layer.spec, dtype=dtype) for layer in read_csv(LAYERS) if layer.name == name)


def accesses(code: DeviceSource, shares: Mapping[str, float] = MappingProxyType({})) -> list[Access]:
    launches = [launch for function in code.functions.values() for launch in function.launches]
    kernels = code.kernels
    return [a for one in launches for a in accesses_of(one.kernel, kernels[one.kernel], one.grid, one.block, shares)]


def of_plan(plan: Plan) -> list[Access]:
    target = resolve(TARGET, 1)
    code = lower(scheduled_module(plan, target), target)
    assert code.functions.keys() == {MAIN}
    return accesses(code, needed_shares(plan))


@pytest.mark.parametrize(
    ("addresses", "width", "expected"),
    [
        ([4 * lane for lane in range(32)], 4, (1, 1)),
        ([512 * lane for lane in range(32)], 4, (32, 1)),
        ([512 * (lane % 16) + 4 * (lane // 16) for lane in range(32)], 4, (16, 1)),
        ([4 * 33 * lane for lane in range(32)], 4, (1, 1)),
        # one word for all is broadcast
        ([64] * 32, 4, (1, 1)),
        ([16 * lane for lane in range(32)], 16, (4, 4)),
        ([80 * lane for lane in range(32)], 16, (4, 4)),
        ([2 * lane for lane in range(32)], 2, (1, 1)),
        ([8 * lane for lane in range(32)], 8, (2, 2)),
        ([16 * lane for lane in range(32)], 8, (4, 2)),
    ],
)
def test_wavefronts(addresses: Sequence[int], width: int, expected: tuple[int, int]) -> None:
    """By the rules of CUDA's programming guide, counted by hand."""
    assert wavefronts(addresses, width) == expected


@pytest.mark.parametrize(
    ("addresses", "width", "expected"),
    [
        ([4 * lane for lane in range(32)], 4, (4, 4)),
        ([4 * lane + 4 for lane in range(32)], 4, (5, 4)),
        ([128 * lane for lane in range(32)], 4, (32, 4)),
        ([0] * 32, 4, (1, 1)),
        ([16 * lane for lane in range(32)], 16, (16, 16)),
        ([-4 + 4 * lane for lane in range(32)], 4, (5, 4)),
    ],
)
def test_sectors(addresses: Sequence[int], width: int, expected: tuple[int, int]) -> None:
    assert sectors(addresses, width) == expected


@pytest.mark.parametrize(
    ("addresses", "share", "expected"),
    [
        # every other of 64 floats in a row, which no request gets in fewer than 8 sectors
        ([8 * lane for lane in range(32)], 0.5, (8, 8)),
        ([8 * lane + 4 for lane in range(32)], 0.5, (8, 8)),
        # 4 rows of 8 such, apart
        ([128 * (lane // 8) + 8 * (lane % 8) + 4 for lane in range(32)], 0.5, (8, 8)),
        ([64 * lane for lane in range(32)], 0.5, (32, 8)),
        # what is read beside the needed elements makes no request dearer than it is
        ([4 * lane for lane in range(32)], 0.5, (4, 4)),
    ],
)
def test_sectors_of_which_a_share_is_needed(addresses: Sequence[int], share: float, expected: tuple[int, int]) -> None:
    assert sectors(addresses, 4, share) == expected


@pytest.mark.parametrize(
    ("changed", "by_taps", "expected"),
    [
        # rows of 8 floats are a sector each: positions 0, 2, 4, 6 of it
        ({}, True, 0.5),
        # rows of 8 halves are half a sector; of two rows one is needed, and half of that
        ({"dtype": "float16"}, True, 0.25),
        # positions of 8 channels are a sector, needed whole or not at all
        ({"data_format": CHANNELS_LAST}, True, 1.0),
        # and of 2 channels a quarter of one: 0, 2 and so on as above
        ({"data_format": CHANNELS_LAST, "channels": 2}, True, 0.5),
        # two taps: each passes over the other's positions
        ({"kernel": (1, 1, 2)}, True, 0.5),
        ({"kernel": (1, 1, 2)}, False, 1.0),
        # rows of 6 floats: 0, 2, 4 of each; 4 rows are 3 sectors, and two of them, of 6 floats, lie in 2 (0..5 and
        # 12..17 in sectors 0, 1 and 2 of 8): 6 of 24
        ({"size": (2, 4, 6), "channels": 1}, True, 0.25),
    ],
)
def test_the_needed_share_of_sectors(changed: Mapping[str, Any], by_taps: bool, expected: float) -> None:
    """Of a convolution that passes over every other row and position, counted by hand."""
    spec = Conv3DSpec(1, (2, 8, 8), 8, 8, (1, 1, 1), strides=(1, 2, 2), data_format=CHANNELS_FIRST)
    assert needed_share(canonicalize(replace(spec, **changed)), by_taps) == expected


def test_accesses_are_counted_all_over_a_kernel() -> None:
    """Not in its middle only: a block whose threads all take part, and one of which 8 do."""
    found = accesses(lower(elementwise("float32", 40, 1), resolve(TARGET, 1)))
    assert [(a.buffer, a.found, a.least) for a in found] == [(name, 2.5, 2.5) for name in ("a", "b", "out")]


def test_accesses_of_small_kernels() -> None:
    """A transpose whose loads are apart, and a product whose tiles are brought in vectors of four."""
    target = resolve(TARGET, 1)
    turned = {a.kind: a for a in accesses(lower(transpose((8, 6, 8)), target))}
    # 4 x 3 x 2 threads along x, y, z: those of x read 48 elements apart, those of y 8, those of z 1
    assert (turned["load"].found, turned["load"].least) == (12, 3)
    assert (turned["store"].found, turned["store"].bytes) == (6, 4)
    product = accesses(lower(matmul("float32"), target))
    brought = [a for a in product if a.space == "shared" and a.kind == "store"]
    assert [a.bytes for a in brought] == [16, 16]
    assert average(product, "global") is not None
    assert average([], "global") is None


@pytest.mark.parametrize("name", ["ansor_c3d_0", "c3dnet_conv1a", "kerasio_ct_1", "i3d_4f_b0_1x1x1", "nnunet_s5"])
def test_gathered_rows_begin_in_different_banks(name: str) -> None:
    """Channels that are read singly, and vectors of them: neighbouring threads store to neighbouring rows."""
    (plan,) = default_plans([layer(name)], TARGET)
    assert plan.algorithm == "gemm"
    shared = [a for a in of_plan(plan) if a.space == "shared"]
    assert {a.buffer for a in shared} == {"gather_shared", "kernel_shared"}
    assert all(a.found <= 2 * a.least for a in shared), shared


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_are_added_in_whole_sectors(dtype: str, data_format: str) -> None:
    """Read as vectors where they were stored as such, and along the axis that is innermost in the output."""
    (plan,) = default_plans([replace(layer("nnunet_s5", dtype), data_format=data_format)], TARGET)
    assert plan.variant.parts > 1
    found = [a for a in of_plan(plan) if a.buffer in ("partial", "out", "bias")]
    assert {(a.buffer, a.kind) for a in found} == {
        ("partial", "store"),
        ("partial", "load"),
        ("out", "store"),
        ("bias", "load"),
    }
    assert {a.bytes for a in found if a.buffer == "partial"} == {16}
    assert all(a.found == a.least for a in found), found


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("ansor_c3d_1", "float32"),  # biases of four filters, or eight, at once
        ("ansor_c3d_1", "float16"),
        ("unetr_patch16", "float32"),  # windows of one channel side by side: along taps
        ("unetr_patch16", "float16"),
        ("kerasio_ct_1", "float32"),  # windows of one channel that overlap: along positions
        ("kerasio_ct_1", "float16"),
        ("r3d18_stem", "float16"),  # elements of 2 bytes, brought one by one
        ("r3d18_stem", "float32"),  # windows 2 apart: along taps that lie between, in channels_first
        ("ansor_c3d_0", "float32"),
        ("voxnet_1", "float32"),
        ("c3dnet_conv1a", "float16"),
    ],
)
def test_nothing_takes_over_twice_the_least(name: str, dtype: str, data_format: str) -> None:
    (plan,) = default_plans([replace(layer(name, dtype), data_format=data_format)], TARGET)
    assert plan.algorithm in ("gemm", "tensor_gemm")
    found = of_plan(plan)
    assert {a.space for a in found} == {"shared", "global"}
    assert all(a.found <= 2 * a.least for a in found), [a for a in found if a.found > 2 * a.least]


@pytest.mark.parametrize(
    ("name", "dtype", "data_format"),
    [
        ("brain_unet_0", "float32", CHANNELS_LAST),  # rows of one channel, in vectors of positions
        ("brain_unet_1", "float32", CHANNELS_LAST),  # 8 filters that read the same: neighbouring positions
        ("brain_unet_1", "float16", CHANNELS_LAST),  # and all of their channels at once
        ("movinet_a0_b4_dw", "float32", CHANNELS_FIRST),  # stride 2: pairs of positions, of two taps
        ("movinet_a0_b4_dw", "float16", CHANNELS_FIRST),  # rows of 11, of which a warp spans three: tiles of planes
    ],
)
def test_windows_take_no_more_than_twice_the_least(name: str, dtype: str, data_format: str) -> None:
    (plan,) = default_plans([replace(layer(name, dtype), data_format=data_format)], TARGET)
    assert plan.algorithm == "window"
    found = of_plan(plan)
    assert all(a.found <= 2 * a.least for a in found), [a for a in found if a.found > 2 * a.least]


@pytest.mark.parametrize(
    ("name", "dtype", "share"),
    [
        # rows of 56 halves, of which 28 are needed, lie in 4 sectors
        ("r3d18_l2_proj", "float16", 56 / 128),
        # rows of 56 floats in 7
        ("r3d18_l2_down", "float32", 0.5),
    ],
)
def test_strided_layers_take_little_more_than_their_positions_fill(name: str, dtype: str, share: float) -> None:
    """In channels_first, tap by tap: half of what its sectors hold is of other taps, or of nobody."""
    (plan,) = default_plans([replace(layer(name, dtype), data_format=CHANNELS_FIRST)], TARGET)
    assert needed_shares(plan) == {"x": share}
    (read,) = (a for a in of_plan(plan) if a.buffer == "x")
    assert read.found <= 1.5 * read.least, read


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("name", ["nnunet_s2", "ansor_c3d_1", "nnunet_s5"])
def test_tensor_cores_results_leave_in_wide_stores(name: str, data_format: str) -> None:
    """Outputs and sums of parts 16 bytes a thread, rows of the sums in different banks."""
    (plan,) = default_plans([replace(layer(name, "float16"), data_format=data_format)], TARGET)
    assert plan.algorithm == "tensor_gemm"
    found = of_plan(plan)
    stores = {a.buffer: a.bytes for a in found if a.kind == "store" and a.buffer in ("partial", "out")}
    assert stores == ({"out": 16} if plan.variant.parts == 1 else {"partial": 16, "out": 8})
    sums = [a for a in found if a.buffer.startswith("product")]
    assert {a.kind for a in sums} == {"load", "store"}
    assert all(a.found == a.least for a in sums if a.kind == "store"), sums
    assert all(a.found <= 2 * a.least for a in sums), sums


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_tensor_cores_factors_are_free_of_conflicts(data_format: str) -> None:
    """Whether copied asynchronously or by way of registers, in 16 bytes a thread; channels_first is turned before."""
    (plan,) = default_plans([replace(layer("nnunet_s2", "float16"), data_format=data_format)], TARGET)
    for stages in (1, plan.variant.stages):
        found = of_plan(replace(plan, variant=replace(plan.variant, stages=stages)))
        factors = [a for a in found if a.buffer in ("gather_shared.dyn", "kernel_shared.dyn")]
        assert len(factors) >= 4
        assert all(a.found == a.least and a.bytes == 16 for a in factors), factors
        read = [a for a in found if a.space == "global" and a.kind == "load" and a.buffer in ("x", "turned")]
        assert {a.bytes for a in read if a.requests > 100} == {16}
        assert all(a.found == a.least for a in read), read


def test_inputs_are_turned_in_whole_sectors() -> None:
    (plan,) = default_plans([replace(layer("nnunet_s2", "float16"), data_format=CHANNELS_FIRST)], TARGET)
    assert plan.variant.turned
    turning = [a for a in of_plan(plan) if a.kernel == "main_kernel"]
    assert {(a.buffer, a.kind) for a in turning} >= {("x", "load"), ("turned", "store")}
    assert all(a.found <= a.least * (2 if a.space == "shared" else 1) for a in turning), turning


def test_winograds_sums_and_results_move_in_whole_sectors_in_channels_first() -> None:
    (plan,) = default_plans([replace(layer("nnunet_s2"), data_format=CHANNELS_FIRST)], TARGET)
    assert plan.algorithm == "winograd_gemm" and plan.spec.size[2] % plan.variant.tile[2] == 0
    moved = [a for a in of_plan(plan) if a.buffer in ("sums", "out")]
    assert {(a.buffer, a.kind) for a in moved} == {("sums", "store"), ("sums", "load"), ("out", "store")}
    assert all(a.found == a.least for a in moved), moved
    assert {a.bytes for a in moved if a.buffer == "out"} == {16}


def test_winograds_tiles_are_read_in_vectors_in_channels_first() -> None:
    """Of four positions, where rows have as many."""
    (plan,) = default_plans([replace(layer("nnunet_s2"), data_format=CHANNELS_FIRST)], TARGET)
    assert plan.algorithm == "winograd_gemm" and plan.variant.tile[2] == 4
    (read,) = (a for a in of_plan(plan) if a.kernel == "main_kernel" and a.buffer == "x")
    # tiles at the ends of rows read vectors that their neighbours read, too
    assert read.bytes == 16 and read.found <= 1.2 * read.least, read


@pytest.mark.parametrize("name", ["i3d_4f_b1", "ansor_c3d_3", "kerasio_ct_3", "dilated_d2"])
def test_winograds_planes_move_in_the_order_of_memory_in_channels_first(name: str) -> None:
    """Rows of 14 and 7 positions, tiles of 3, parts whose positions lie 2 apart: all by way of shared memory."""
    (plan,) = default_plans([replace(layer(name), data_format=CHANNELS_FIRST)], TARGET)
    assert plan.algorithm == "winograd_gemm"
    moved = [a for a in of_plan(plan) if a.kernel != "main_kernel_1"]
    assert {a.buffer for a in moved} == {"x", "slab_shared", "data", "sums", "tile_shared", "bias", "out"}
    assert all(a.found <= 2 * a.least for a in moved), moved
    assert all(a.found <= 1.5 * a.least for a in moved if a.space == "global"), moved


@pytest.mark.parametrize(("dtype", "width"), [("float32", 16), ("float16", 8), ("bfloat16", 8)])
def test_windows_read_the_channels_of_a_group_at_once(dtype: str, width: int) -> None:
    """Four, in channels_last: each sector is asked for once, by threads whose groups are neighbours."""
    (plan,) = default_plans([layer("resnext3d_g32_a", dtype)], TARGET)
    assert plan.algorithm == "window"
    loads = [a for a in of_plan(plan) if a.buffer in ("x", "kernel")]
    assert {a.bytes for a in loads if a.buffer == "x"} == {width}
    assert {a.bytes for a in loads if a.buffer == "kernel"} == {16}
    assert all(a.found == a.least for a in loads), loads


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_windows_read_and_write_pairs_of_depthwise_channels(dtype: str) -> None:
    (plan,) = default_plans([layer("movinet_a0_b4_dw", dtype)], TARGET)
    assert plan.algorithm == "window"
    found = of_plan(plan)
    assert {(a.buffer, a.kind, a.bytes) for a in found} == {
        ("x", "load", 4),
        ("kernel", "load", 8),
        ("bias", "load", 8),
        ("out", "store", 4),
    }
    assert all(a.found <= 2 * a.least for a in found), found


#: Layers of all kinds, as they are trained: few channels, strides, groups, few positions.
TRAINED = ("c3dnet_conv3a", "r3d18_l2_down", "x3dm_dw_216", "nnunet_s5", "slowfast_lateral")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_weights_move_whole_sectors(name: str, dtype: str) -> None:
    (plan,) = default_plans([weight_gradient_of(layer(name, dtype), bias=True)], TARGET)
    assert plan.algorithm.startswith("weight_gradient")
    found = of_plan(plan)
    assert {"gradient", "x", "out", "bias_gradient"} <= {a.buffer for a in found}
    assert all(a.found <= 2 * a.least for a in found), found


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_of_biases_are_summed_in_vectors(dtype: str, data_format: str) -> None:
    """Of four elements, filters or positions, side by side in neighbouring threads; sums without conflicts."""
    spec = replace(layer("c3dnet_conv3a", dtype), data_format=data_format)
    (plan,) = default_plans([weight_gradient_of(spec, bias=True)], TARGET)
    found = of_plan(plan)
    *_, last, added = sorted({a.kernel for a in found})
    summed = [a for a in found if a.kernel == last]
    assert {(a.buffer, a.kind, a.bytes) for a in summed if a.kind == "load"} == {
        ("gradient", "load", 16 if dtype == "float32" else 8)
    }
    assert all(a.found <= 1.1 * a.least for a in found if a.kernel in (last, added)), found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["c3dnet_conv3a", "r3d18_l2_down", "x3dm_dw_216", "nnunet_s5"])
def test_gradients_of_data_move_whole_sectors(name: str, dtype: str) -> None:
    (plan,) = default_plans([data_gradient_of(layer(name, dtype))], TARGET)
    found = of_plan(plan)
    assert all(a.found <= 2 * a.least for a in found), found
