"""Filters that fill no whole vectors: stored in parts of vectors, or copied to the output in runs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from problems import BOUNDS, data, execute, linked
from sampling import sampled
from tvm_conv3d.compute.llvm import direct as direct_sums
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import output_pool
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.schedules.llvm import direct
from tvm_conv3d.schedules.llvm.costs import direct as direct_costs
from tvm_conv3d.spec import NO_PADS, Conv3DSpec, Pads, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

SAME = (Pads(1, 1),) * 3
BASE = Conv3DSpec(1, (5, 9, 11), 6, 23, (3, 3, 3), pads=SAME, post_ops=("relu",))
SPECS = {
    "dense": BASE,
    "batch": replace(BASE, batch=2, filters=37),
    "strided": replace(BASE, strides=(1, 2, 2), pads=same_padding(BASE.size, (3, 3, 3), (1, 2, 2), (1, 1, 1))),
    "few": replace(BASE, filters=5),
    "pointwise": replace(BASE, kernel=(1, 1, 1), pads=NO_PADS, filters=181),
    "stem": replace(BASE, channels=1, kernel=(1, 3, 3), pads=(Pads(0, 0), Pads(1, 1), Pads(1, 1)), filters=70),
    "groups": replace(BASE, channels=12, filters=46, groups=2),
    "double": replace(BASE, dtype="float64", filters=13),
    "half": replace(BASE, dtype="float16"),
    # a vector with one valid lane, of which LLVM would store two
    "single lanes": replace(BASE, channels=36, filters=36, groups=36, dtype="bfloat16"),
    "depthwise": replace(BASE, channels=41, filters=41, groups=41),
    "depthwise strided": replace(
        BASE,
        size=(5, 9, 11),
        channels=13,
        filters=13,
        groups=13,
        strides=(1, 2, 2),
        pads=same_padding((5, 9, 11), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    ),
    "long rows": replace(
        BASE, channels=21, filters=21, groups=21, kernel=(1, 1, 7), pads=(Pads(0, 0), Pads(0, 0), Pads(3, 3))
    ),
    "narrow": replace(BASE, size=(7, 3, 1), filters=9),
}
#: Those of half types, and those that the depthwise convolution takes.
WITHOUT_RUNS = ("half", "single lanes", "depthwise", "depthwise strided", "long rows")

#: Elements around an output that must stay as they are.
FENCE = 64


def stored(plan: Plan, offsets: tuple[int, ...] = (0, 1, 5)) -> None:
    """Runs `plan` into outputs so many elements behind a cache line, and looks around them."""
    spec = plan.spec
    x, kernel, bias = data(spec)
    expected = np.maximum(oracle.convolve(spec, x, kernel, bias), 0)
    size = int(np.prod(spec.output_shape))
    loaded = linked(plan)
    for offset in offsets:
        room = output_pool.empty((max(size + 2 * FENCE + offset, (1 << 20) // x.itemsize),), x.dtype)
        assert room.ctypes.data % 64 == 0
        room.fill(7)
        out = room[FENCE + offset :][:size].reshape(spec.output_shape)
        _, trusted = execute(plan, x, kernel, bias, out, loaded=loaded)
        assert trusted
        assert oracle.relative_error(out, expected) < max(1e-5, BOUNDS[spec.dtype])
        assert (room[: FENCE + offset] == 7).all()
        assert (room[FENCE + offset + size :] == 7).all()


def plans(spec: Conv3DSpec) -> list[Plan]:
    traits = cpu_traits(host_target(2))
    found = [(name, algorithm.default(spec, traits)) for name, algorithm in algorithms("llvm").items()]
    found += [(name, (v, {})) for name, a in algorithms("llvm").items() for v in a.variants(spec, traits)[:1]]
    return list({plan.describe(): plan for plan in (Plan(spec, name, *f) for name, f in found if f)}.values())


@pytest.mark.parametrize("name", sampled(SPECS, 3))
def test_parts_of_vectors(name: str) -> None:
    for plan in plans(SPECS[name]):
        stored(plan)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("name", [name for name in SPECS if name not in WITHOUT_RUNS])
def test_runs(name: str, past: bool) -> None:
    variant, decisions = direct_costs.default(canonicalize(SPECS[name]), cpu_traits(host_target(2)))
    variant = replace(variant, order="strips", stream=past, interleaved=1)
    stored(Plan(SPECS[name], "direct", variant, {**decisions, "strip": 2}))


def test_groups_that_share_vectors_have_no_runs() -> None:
    spec = SPECS["groups"]
    variant, decisions = direct_costs.default(canonicalize(spec), cpu_traits(host_target(2)))
    assert variant.interleaved > 1
    with pytest.raises(ValueError, match="strips"):
        scheduling.scheduled_module(Plan(spec, "direct", replace(variant, order="strips"), decisions), host_target(2))


def assembly(plan: Plan, cpu: str) -> str:
    import tvm

    target = resolve({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu"}, 2)
    lowered = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    return str(tvm.compile(lowered, target=target.as_tvm()).mod.inspect_source("asm"))


@pytest.mark.parametrize(
    ("name", "cpu", "masked"),
    [
        ("pointwise", "znver4", r"vmovups\t%zmm\d+, .*\{%k\d\}"),
        # 23 filters: three halves of a vector
        ("dense", "znver4", r"vmovups\t%ymm\d+, .*\{%k\d\}"),
        ("dense", "sapphirerapids", r"vmovups\t%zmm\d+, .*\{%k\d\}"),
        ("pointwise", "haswell", r"vmaskmovps\t%ymm"),
        ("dense", "haswell", r"vmaskmovps\t%ymm"),
    ],
)
def test_no_vector_is_stored_in_single_elements(name: str, cpu: str, masked: str) -> None:
    target = resolve({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu"}, 2)
    text = assembly(default_plan(SPECS[name], target), cpu)
    assert re.search(masked, text)
    assert not re.search(r"v(movss|extractps)\t.*, -?\d*\(", text)


@pytest.mark.parametrize(
    ("name", "filters", "order", "past"),
    [
        ("pointwise", 181, "strips", True),
        ("pointwise", 176, "spatial_filters", True),
        ("stem", 70, "strips", True),
        ("stem", 64, "spatial_filters", False),
        ("stem", 16, "spatial_filters", True),
    ],
)
def test_what_outgrows_the_caches_goes_past_them(name: str, filters: int, order: str, past: bool) -> None:
    target = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
    spec = replace(SPECS[name], filters=filters)
    most = cpu_traits(target).l3 // (int(np.prod(spec.output_shape[2:])) * 4)
    for depth, outgrows in ((most // 2, False), (most, True)):
        variant = default_plan(replace(spec, size=(depth, *spec.size[1:])), target).variant
        assert (variant.order, variant.stream) == ((order, past) if outgrows else ("spatial_filters", False))


@pytest.mark.parametrize("strips", [False, True])
def test_indices_of_64_bits(strips: bool) -> None:
    large = replace(SPECS["pointwise"], size=(1024, 256, 256))
    plan = default_plan(large, host_target(2))
    changes: dict[str, Any] = {} if strips else {"order": "spatial_filters", "stream": False}
    plan = replace(plan, variant=replace(plan.variant, **changes))
    assert (plan.variant.order == "strips") == strips
    assert build.compile_plan(plan, host_target(2)).object_code


def test_small_tiles_store_short_sums() -> None:
    target = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
    for channels, filters, tile in (
        (3, 181, (3, 1)),
        (3, 128, (2, 1)),
        (3, 97, (2, 2)),
        (3, 32, (2, 12)),
        (24, 181, (1, 4)),
        (24, 128, (2, 12)),
        (100, 181, (2, 12)),
    ):
        spec = replace(SPECS["pointwise"], size=(10, 16, 15), channels=channels, filters=filters)
        variant = default_plan(spec, target).variant
        assert (variant.vectors, variant.columns) == tile, (channels, filters)


def test_a_run_of_one_number() -> None:
    spec = replace(SPECS["dense"], size=(5, 9, 1), kernel=(3, 3, 1), pads=(*SAME[:2], Pads(0, 0)), filters=1)
    variant, decisions = direct_costs.default(canonicalize(spec), cpu_traits(host_target(2)))
    strips = replace(variant, order="strips", columns=1)
    stored(Plan(spec, "direct", strips, {**decisions, "columns": 1, "strip": 1}), (1,))


@pytest.mark.parametrize("name", ["batch", "strided"])
def test_random_strips(name: str) -> None:
    from tvm.s_tir import Schedule

    spec = SPECS[name]
    variant, _ = direct_costs.default(canonicalize(spec), cpu_traits(host_target(2)))
    variant = replace(variant, order="strips", columns=2)
    for seed in range(1, 5):
        schedule = Schedule(direct_sums.declare(canonicalize(spec), variant).module(), seed=seed)
        decisions = Decisions(schedule, None)
        direct.apply(schedule, canonicalize(spec), variant, decisions)
        assert "strip" in decisions.taken()
        stored(Plan(spec, "direct", variant, decisions.taken()), (1,))
