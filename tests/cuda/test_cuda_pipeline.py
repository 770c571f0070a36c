"""Asynchronous copies that run ahead of products: right, waited for, and as large as the plan says."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuda_checks import assert_right, in_order, lowered_on_cpu
from cuda_on_cpu import Report, run_program, without_barrier
from cuda_on_cpu.compile import compile_kernels
from cuda_on_cpu.execute import Order
from cuda_on_cpu.lower import LoweredModule
from problems import data
from sampling import sampled
from tvm_conv3d.compute.cuda.implicit_gemm import extents_of
from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
from tvm_conv3d.compute.cuda.variants import GemmVariant
from tvm_conv3d.compute.shared import stages
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.scheduling import scheduled_module
from tvm_conv3d.reference import oracle
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.schedules.cuda.costs import gemm
from tvm_conv3d.schedules.cuda.costs.tensor import TILES, candidates, fitted, variants
from tvm_conv3d.schedules.cuda.tensor_tile import shared_bytes, sums_of_thread
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

TARGET = "cuda:sm_80"

ORDERS: list[Order] = ["forward", "reverse", ("shuffled", 3)]

every_order = pytest.mark.parametrize("order", ORDERS, ids=str)

BASE = Conv3DSpec(1, (4, 5, 6), 64, 48, (3, 3, 3), pads=(Pads(1, 1),) * 3, dtype="float16", post_ops=("relu",))

SINGLE = Conv3DSpec(1, (3, 4, 5), 16, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))

FIRST = replace(BASE, data_format=CHANNELS_FIRST)

POINTWISE = replace(BASE, kernel=(1, 1, 1), pads=(Pads(0, 0),) * 3)

_WAIT = re.compile(r"tvm_builtin_ptx_cp_async_wait_group_\w+\(\);")

needs_nvcc = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")


def plan(
    spec: Conv3DSpec,
    ahead: int,
    tile: tuple[int, int, int, int] = (64, 64, 2, 2),
    step: int = 32,
    parts: int = 1,
    turned: bool = False,
    along_terms: int = 1,
) -> Plan:
    """A plan of this tile (cells, filters, warps along each), with `ahead` stages."""
    cells, filters, *along = tile
    variant = TensorVariant(
        cells, filters, step, along[0], along[1], parts=parts, turned=turned, warps_terms=along_terms
    )
    variant = fitted(canonicalize(spec), variant)
    return Plan(spec, "tensor_gemm", replace(variant, stages=ahead), {})


def plans() -> list[Plan]:
    """Vectors of 8, 4, 2 channels and single ones, taps in the same index or not, fewer steps than stages, turned."""
    return [
        *(plan(BASE, ahead) for ahead in (2, 3, 4)),
        plan(replace(BASE, dtype="bfloat16", batch=2), 3, (128, 128, 2, 2)),
        plan(BASE, 3, step=64),
        replace(plan(BASE, 3, (32, 32, 1, 2)), decisions={"near_tiles": 2, "unroll": 1}),
        plan(BASE, 3, parts=3),
        plan(replace(BASE, channels=8, strides=(1, 2, 1)), 3),
        plan(replace(BASE, channels=20, filters=20, dilation=(1, 2, 1)), 4, (32, 32, 1, 2)),
        plan(replace(BASE, channels=6), 2, (32, 32, 2, 1)),
        plan(POINTWISE, 4),
        plan(replace(POINTWISE, channels=32), 3),
        plan(FIRST, 3),
        plan(FIRST, 3, parts=3, turned=True),
        plan(replace(FIRST, size=(3, 5, 7), channels=24, batch=2), 1, turned=True),
        plan(replace(FIRST, dtype="bfloat16", channels=72), 2, turned=True),
        plan(replace(FIRST, groups=2, filters=40), 4, (64, 32, 2, 1), turned=True),
        *plans_of_shared_sums(),
    ]


def plans_of_shared_sums() -> list[Plan]:
    """Warps that take a share of the terms each: layouts, parts, one stage, four warps, sums that are cut, groups."""
    return [
        plan(BASE, 3, (64, 64, 1, 1), along_terms=2),
        plan(replace(BASE, dtype="bfloat16", batch=2), 2, (64, 64, 1, 1), step=64, along_terms=4),
        plan(replace(BASE, channels=20, filters=20), 1, (32, 32, 2, 1), along_terms=2),
        plan(BASE, 4, (32, 32, 1, 2), step=64, parts=3, along_terms=2),
        plan(FIRST, 3, (64, 32, 2, 1), turned=True, along_terms=2),
        plan(replace(FIRST, groups=2, filters=40), 2, (64, 32, 2, 1), parts=3, turned=True, along_terms=2),
        plan(replace(POINTWISE, size=(1, 2, 3), channels=16384), 3, (32, 32, 2, 1), along_terms=2),
    ]


def in_registers(
    spec: Conv3DSpec, ahead: int, tile: tuple[int, int, int, int] = (32, 32, 8, 8), parts: int = 1
) -> Plan:
    """A plan of this tile (cells, filters, threads along each) on CUDA cores, with `ahead` stages."""
    cells, filters, threads_cells, threads_filters = tile
    variant = GemmVariant(cells, filters, 8, threads_cells, threads_filters, parts=parts)
    variant = gemm.fitted(canonicalize(spec), variant)
    return Plan(spec, "gemm", replace(variant, stages=ahead), {})


def plans_in_registers() -> list[Plan]:
    """Vectors of channels and single ones, taps in the same index or not, parts, groups, layouts, wide elements."""
    first = replace(SINGLE, data_format=CHANNELS_FIRST)
    return [
        *(in_registers(SINGLE, ahead) for ahead in (2, 3, 4)),
        in_registers(replace(SINGLE, batch=2, strides=(1, 2, 1)), 2, (64, 32, 16, 8)),
        in_registers(replace(SINGLE, channels=3, filters=19), 2),
        in_registers(replace(SINGLE, channels=13), 3),
        in_registers(replace(SINGLE, channels=1, strides=(1, 1, 4), size=(3, 4, 9)), 2),
        in_registers(SINGLE, 2, parts=3),
        in_registers(replace(SINGLE, groups=2, dilation=(1, 1, 2)), 2, (32, 16, 16, 4)),
        in_registers(first, 2, parts=9),
        in_registers(replace(first, channels=3, batch=2), 3),
        in_registers(replace(SINGLE, dtype="float64"), 2, (32, 32, 8, 8)),
    ]


def lowered(found: Plan) -> LoweredModule:
    target = resolve(TARGET, 1)
    return lowered_on_cpu(scheduled_module(found, target), target)


@every_order
def test_copies_that_run_ahead_are_right(order: Order) -> None:
    found = plans()
    assert {p.variant.vector for p in found} == {1, 2, 4, 8}
    assert {p.variant.flat for p in found} == {True, False}
    assert_right(found, TARGET, order)


@every_order
def test_copies_that_run_ahead_of_registers_are_right(order: Order) -> None:
    found = plans_in_registers()
    assert {p.variant.vector for p in found} >= {1, 4} and {p.variant.flat for p in found} == {True, False}
    assert all("copy_async" in lowered(p).source or "cp_async" in lowered(p).source for p in found)
    assert_right(found, TARGET, order)


def test_long_sums_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies drain where a part of the sum ends."""
    monkeypatch.setattr(stages, "PART_ON_GPU", 32 * 9)
    found = plan(BASE, 3)
    source = lowered(found).source
    assert "tvm_conv3d_add_fragment(" in source and _WAIT.search(source)
    assert_right([found], TARGET)


def test_sums_that_warps_share_are_cut_where_each_of_them_is_long() -> None:
    assert "tvm_conv3d_add_fragment(" in lowered(plans_of_shared_sums()[-1]).source
    shared = plan(replace(POINTWISE, channels=8192), 3, along_terms=2)
    alone = replace(shared, variant=replace(shared.variant, warps_terms=1))
    assert ["tvm_conv3d_add_fragment(" in lowered(found).source for found in (shared, alone)] == [False, True]


def test_every_warp_needs_terms_for_its_instruction() -> None:
    with pytest.raises(ValueError, match=r"Each warp takes 16 terms of a step, or a multiple.*warps_terms=4"):
        named("tensor_gemm").declare(BASE, plan(BASE, 3, along_terms=4).variant)


def test_only_channels_first_is_turned() -> None:
    with pytest.raises(ValueError, match="Only channels_first is turned"):
        named("tensor_gemm").declare(BASE, plan(FIRST, 3, turned=True).variant)


@pytest.mark.parametrize(
    ("found", "order"),
    sampled(
        itertools.product(
            (plan(BASE, 3), plan(BASE, 3, (64, 64, 1, 1), along_terms=2), in_registers(SINGLE, 3)), ORDERS
        ),
        4,
    ),
)
def test_every_wait_and_every_barrier_is_needed(found: Plan, order: Order) -> None:
    """Without one of them numbers are wrong, or threads race."""
    module, given = lowered(found), data(found.spec)
    expected = oracle.finish(found.spec, oracle.convolve(found.spec, *given), None)
    arrays = in_order(found, given, module.parameters)

    def is_right(source: str) -> bool:
        buffers = {
            b.name: np.zeros(b.shape, b.dtype) if array is None else array
            for b, array in zip(module.parameters, arrays, strict=True)
        }
        report: Report = run_program(compile_kernels(source), module.launches, buffers, order)
        out = report.buffers["out"].view(found.spec.dtype).reshape(found.spec.output_shape)
        return report.ok and oracle.relative_error(out, expected) < 1e-3

    source = module.source
    assert is_right(source)
    waits = [match for match in _WAIT.finditer(source) if match.start() > source.rindex("main_kernel(")]
    barriers = source.count("__syncthreads();")
    # in the loop, and twice as it drains
    assert len(waits) == 3 and barriers >= 4
    for wait in waits:
        assert not is_right(source[: wait.start()] + source[wait.end() :]), wait
    for number in range(1, barriers + 1):
        assert not is_right(without_barrier(source, number)), number


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_shared_memory_is_what_the_costs_count(arch: str) -> None:
    target = resolve(f"cuda:{arch}", 1)
    for found in plans():
        launch = lower(scheduled_module(found, target), target).functions["main"].launches[int(found.variant.turned)]
        assert launch.shared == shared_bytes(canonicalize(found.spec), found.variant), found


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_large_layers_have_large_tiles_and_stages(arch: str) -> None:
    """Of 64 x 64 for a warp; all candidates fit the architecture, in shared memory and registers."""
    traits = ARCHITECTURES[arch]
    layers = {layer.name: canonicalize(replace(layer.spec, dtype="float16")) for layer in read_csv(LAYERS)}
    best = candidates(layers["nnunet_s2"], traits)[0]
    assert best.stages >= 3
    assert (best.cells // best.warps_cells, best.filters // best.warps_filters) == (64, 64)
    for spec in layers.values():
        for variant in candidates(spec, traits):
            assert shared_bytes(spec, variant) <= traits.shared_opt_in
            assert sums_of_thread(spec, variant) <= 128


@pytest.mark.parametrize("layer", ["ansor_c3d_2", "ansor_c3d_3"])
def test_few_positions_are_cut_into_parts_of_large_tiles(layer: str) -> None:
    """As many as fill the multiprocessors once: copies run ahead, so that further blocks would only be further sums."""
    traits = ARCHITECTURES["sm_90"]
    spec = canonicalize(next(replace(x.spec, dtype="float16") for x in read_csv(LAYERS) if x.name == layer))
    best = candidates(spec, traits)[0]
    e = extents_of(spec, best)
    blocks = e.cell_blocks * e.filter_blocks * best.parts
    assert best.parts > 1 and best.stages > 1
    assert (best.cells // best.warps_cells, best.filters // best.warps_filters) == (64, 64)
    assert 0.75 * traits.multiprocessors <= blocks <= traits.multiprocessors


def test_tuning_tries_other_steps_and_stages() -> None:
    """Beside the default, which comes first; all of them fit."""
    traits = ARCHITECTURES["sm_90"]
    spec = canonicalize(next(replace(x.spec, dtype="float16") for x in read_csv(LAYERS) if x.name == "nnunet_s2"))
    found = variants(spec, traits)
    assert found[0] == candidates(spec, traits)[0]
    assert len(set(found)) == len(found)
    assert {v.step for v in found} == {32, 64} and {v.stages for v in found} == {2, 3, 4}
    assert all(shared_bytes(spec, v) <= traits.shared_opt_in for v in found)


def test_tuning_tries_copies_ahead_of_registers_where_they_are_asynchronous() -> None:
    """Not where elements are converted, where an architecture has no such copies, and in sums with parts' ends."""
    for arch, traits in ARCHITECTURES.items():
        found = gemm.variants(canonicalize(SINGLE), traits)
        assert found[0] == gemm.candidates(canonicalize(SINGLE), traits)[0]
        assert {v.stages for v in found} == ({1, 2, 3} if traits.arch >= 80 else {1}), arch
    traits = ARCHITECTURES["sm_80"]
    for change in ({"dtype": "float16"}, {"channels": 160, "size": (40, 40, 40)}):
        assert {v.stages for v in gemm.variants(canonicalize(replace(SINGLE, **change)), traits)} == {1}, change


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_large_tiles_do_not_spill(arch: str) -> None:
    spec = next(replace(layer.spec, dtype="float16") for layer in read_csv(LAYERS) if layer.name == "nnunet_s2")
    target = resolve(f"cuda:{arch}", 1)
    wide = [tile for tile in TILES if tile[0] * tile[1] // (tile[2] * tile[3]) == 64 * 64]
    assert len(wide) >= 4
    for *tile, along_terms in wide:
        variant = plan(spec, 3, tuple(tile), max(32, 16 * along_terms), along_terms=along_terms)
        (found,) = toolkit.measure(lower(scheduled_module(variant, target), target).source, arch).values()
        assert found.spills == found.stack == 0 and 128 < found.registers <= 255, (tile, found)
