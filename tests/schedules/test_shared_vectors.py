"""Groups of few filters that take turns in the lanes of a vector."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, data, run, run_plan
from sampling import sampled
from tvm_conv3d.compute.llvm.direct import declare
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.schedules.llvm.costs import tile_rule
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

ZEN4 = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
HASWELL = resolve({"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}, 2)


def grouped(groups: int, channels: int, filters: int, kernel: int = 3, **more: object) -> Conv3DSpec:
    """A layer with so many channels and filters in each group."""
    size, k = (4, 7, 11), (kernel,) * 3
    strides, dilation = more.get("strides", (1, 1, 1)), more.get("dilation", (1, 1, 1))
    pads = same_padding(size, k, strides, dilation)  # type: ignore[arg-type]
    spec = Conv3DSpec(1, size, groups * channels, groups * filters, k, pads=pads, groups=groups)
    return replace(spec, **more)  # type: ignore[arg-type]


LAYERS = [
    grouped(4, 5, 4, post_ops=("relu",)),
    grouped(8, 3, 4, batch=2),
    grouped(2, 7, 4),
    grouped(8, 3, 3, bias=False),
    grouped(8, 4, 5, strides=(1, 2, 2)),
    grouped(8, 3, 6, dilation=(2, 1, 2)),
    grouped(4, 9, 12),
    grouped(6, 5, 2),
    grouped(16, 1, 2),
    grouped(8, 3, 4, data_format=CHANNELS_FIRST),
    grouped(4, 5, 3, kernel=2, data_format=CHANNELS_FIRST),
    grouped(4, 5, 2, dtype="float64"),
    grouped(4, 5, 4, dtype="float16"),
    grouped(8, 3, 4, dtype="bfloat16", strides=(1, 2, 2)),
]


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.key())
def test_the_direct_convolution_is_right(spec: Conv3DSpec) -> None:
    traits = cpu_traits(host_target(2))
    variant, decisions = algorithms("llvm")["direct"].default(spec, traits)
    if traits.vector_bits == 512:  # on narrow vectors a group can fill one
        assert variant.interleaved > 1
    assert run_plan(Plan(spec, "direct", variant, decisions)) < BOUNDS[spec.dtype]


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.key())
def test_the_direct_convolution_is_chosen(spec: Conv3DSpec) -> None:
    chosen = make_plan(spec, ZEN4, exact=True).algorithm
    # rows of channels_first may fill vectors, too
    assert chosen == "direct" or (spec.data_format, chosen) == (CHANNELS_FIRST, "planes")


@pytest.mark.parametrize(
    "spec",
    sampled(
        [
            grouped(4, 24, 4, post_ops=("relu",)),
            grouped(8, 16, 6, batch=2),
            grouped(2, 20, 40),
            grouped(3, 16, 32, strides=(2, 2, 2)),
            grouped(4, 24, 4, data_format=CHANNELS_FIRST),
            grouped(4, 24, 3, dtype="bfloat16"),
        ],
        5,
    ),
    ids=lambda spec: spec.key(),
)
def test_winograd_with_groups_is_right(spec: Conv3DSpec) -> None:
    algorithm = algorithms("llvm")["winograd"]
    for variant in algorithm.variants(spec, cpu_traits(host_target(2)))[:4]:
        assert run_plan(Plan(spec, "winograd", variant, {})) < max(WINOGRAD_BOUND, BOUNDS[spec.dtype])


def test_infinity_reaches_only_its_window_and_group() -> None:
    spec = grouped(2, 32, 32)
    assert make_plan(spec, host_target(2)).algorithm == "winograd"
    x, kernel, bias = data(spec)
    x[0, 1, 2, 3, 40] = np.inf
    result = run(spec, x, kernel, bias)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(oracle.convolve(spec, x, kernel, bias)))
    assert not np.isfinite(result).all()
    assert np.isfinite(result[..., :32]).all()


@pytest.mark.parametrize(
    ("target", "spec", "instruction"),
    [
        (ZEN4, grouped(8, 8, 2), r"vmovups\t.*%ymm"),
        (ZEN4, grouped(8, 8, 4), r"vbroadcastf(32x8|64x4)\t.*\(.*%zmm"),
        (ZEN4, grouped(4, 8, 12), r"vbroadcastf(32x4|64x2)\t.*\(.*%zmm"),
        (ZEN4, grouped(2, 8, 4), r"(vbroadcastsd|vmovddup)\t.*\(.*%ymm"),
        (HASWELL, grouped(4, 8, 4), r"vbroadcastf128\t.*\(.*%ymm"),
    ],
)
def test_inputs_are_repeated_by_the_load(target: object, spec: Conv3DSpec, instruction: str) -> None:
    """No shuffle between a load and the multiply-adds."""
    import tvm

    plan = make_plan(spec, target, exact=True)
    module = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    lines = str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm")).splitlines()
    fused = [i for i, line in enumerate(lines) if re.search(r"vfmadd\d+ps.*%[yz]mm", line)]
    inner = "\n".join(lines[fused[0] - 10 : fused[-1]])
    assert re.search(instruction, inner)
    assert not re.search(r"v(perm|shuf|insert|unpck)", inner)


def test_vectors_are_full_where_groups_can_fill_them() -> None:
    traits = cpu_traits(ZEN4)
    for spec in (grouped(8, 16, 4), grouped(16, 16, 3), grouped(8, 16, 6), grouped(4, 16, 12)):
        sharing = tile_rule.worthwhile_sharing(canonicalize(spec), traits)
        assert sharing is not None
        assert sharing.interleaved * spec.group_filters == sharing.vectors * sharing.lanes


def test_groups_keep_their_vectors_where_sharing_does_not_pay() -> None:
    traits = cpu_traits(ZEN4)
    for spec in (
        grouped(32, 1, 1),
        grouped(16, 8, 1),
        grouped(3, 16, 4),
        grouped(2, 16, 16),
        grouped(8, 16, 4, kernel=1),
    ):
        assert tile_rule.worthwhile_sharing(canonicalize(spec), traits) is None


def test_every_filter_has_a_place_of_its_own() -> None:
    for groups, filters, interleaved, vectors, lanes in (
        (4, 4, 4, 1, 16),
        (8, 5, 4, 2, 16),
        (6, 20, 2, 2, 8),
        (2, 3, 1, 1, 4),
    ):
        layout = FilterPacking(groups, filters, interleaved, vectors, lanes)
        places = [layout.place(f) for f in range(layout.shared_filters)]
        assert len(set(places)) == layout.shared_filters
        for f, (vector, lane) in enumerate(places):
            assert 0 <= vector < layout.blocks * vectors
            assert 0 <= lane < lanes
            assert lane % interleaved == f // filters


def test_groups_that_can_not_share_are_refused() -> None:
    spec = grouped(6, 5, 4)
    variant = make_plan(spec, ZEN4, exact=True).variant
    with pytest.raises(ValueError, match="must divide"):
        declare(canonicalize(spec), replace(variant, interleaved=4, gather="task"))
    with pytest.raises(ValueError, match="must fit a tile"):
        declare(canonicalize(grouped(8, 4, 12)), replace(variant, interleaved=8, lanes=16, vectors=2, gather="task"))
