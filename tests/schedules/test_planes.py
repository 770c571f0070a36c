"""Convolution on planes, as they lie or made: its numbers, its rule and its instructions."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from problems import BOUNDS, run_plan
from sampling import sampled
from tvm_conv3d.compute.llvm.planes import needs_gather
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import planner, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

AVX512 = {"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}
AVX2 = {"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}
NEON = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}

DEPTHWISE = Conv3DSpec(
    2,
    (4, 9, 30),
    6,
    6,
    (3, 3, 3),
    pads=(Pads(1, 1),) * 3,  # type: ignore[arg-type]
    groups=6,
    data_format=CHANNELS_FIRST,
)


def first_plan(spec: Conv3DSpec) -> Plan:
    return Plan(spec, "planes", algorithms("llvm")["planes"].variants(spec, cpu_traits(host_target(2)))[0], {})


def assembly(spec: Conv3DSpec, target_fields: dict[str, object]) -> str:
    import tvm

    target = resolve(target_fields, 2)
    plan = default_plan(spec, target)
    assert plan.algorithm == "planes"
    module = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    return str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm"))


CHANGES_OF_DEPTHWISE = [
    {},
    {"size": (3, 4, 1)},
    {"size": (3, 4, 1), "kernel": (3, 3, 1), "pads": (Pads(1, 1), Pads(1, 1), Pads(15, 0))},
    {"size": (3, 4, 17)},
    {"strides": (1, 2, 2)},
    {"strides": (2, 1, 5)},
    {"strides": (2, 3, 2), "kernel": (1, 1, 1), "pads": (Pads(1, 0), Pads(0, 2), Pads(3, 1)), "groups": 1},
    {"dilation": (1, 2, 3), "kernel": (1, 2, 3)},
    {"groups": 3, "filters": 9},
    {"groups": 1, "channels": 3, "filters": 41},
    {"groups": 1, "channels": 5, "filters": 1, "kernel": (1, 1, 1), "pads": NO_PADS, "size": (2, 3, 32)},
    {"kernel": (3, 1, 1), "pads": (Pads(1, 1), Pads(0, 0), Pads(0, 0))},
    {"pads": (Pads(0, 2), Pads(3, 0), Pads(5, 4))},
]


@pytest.mark.parametrize(("change", "dtype"), sampled(itertools.product(CHANGES_OF_DEPTHWISE, BOUNDS), 3))
def test_numbers_are_right(change: dict[str, object], dtype: str) -> None:
    spec = replace(DEPTHWISE, dtype=dtype, **change)  # type: ignore[arg-type]
    assert run_plan(first_plan(spec)) < BOUNDS[dtype]


FEW = replace(DEPTHWISE, groups=1, channels=5, filters=3, data_format="channels_last")


CHANGES_OF_FEW = [
    {},
    {"filters": 1},
    {"filters": 4, "channels": 33, "size": (3, 7, 16)},
    {"filters": 2, "size": (3, 4, 1), "kernel": (3, 3, 1), "pads": (Pads(1, 1), Pads(1, 1), Pads(15, 0))},
    {"strides": (1, 2, 2), "channels": 16},
    {"filters": 2, "strides": (2, 1, 5)},
    {"filters": 2, "strides": (3, 2, 2), "kernel": (1, 1, 1), "pads": (Pads(1, 0), Pads(0, 2), Pads(3, 1))},
    {"dilation": (1, 2, 3), "kernel": (1, 2, 3)},
    {"filters": 1, "channels": 8, "kernel": (1, 1, 1), "pads": NO_PADS, "size": (2, 3, 32)},
    {"filters": 2, "channels": 3, "kernel": (1, 1, 1), "pads": NO_PADS, "post_ops": ("relu",)},
    {"kernel": (3, 1, 1), "pads": (Pads(1, 1), Pads(0, 0), Pads(0, 0))},
    {"filters": 1, "pads": (Pads(0, 2), Pads(3, 0), Pads(5, 4))},
]


@pytest.mark.parametrize(("change", "dtype"), sampled(itertools.product(CHANGES_OF_FEW, BOUNDS), 3))
def test_numbers_of_few_filters_in_channels_last_are_right(change: dict[str, object], dtype: str) -> None:
    spec = replace(FEW, dtype=dtype, **change)  # type: ignore[arg-type]
    assert run_plan(first_plan(spec)) < BOUNDS[dtype]


@pytest.mark.parametrize(
    ("sizes", "dtype", "stream"),
    sampled(itertools.product(((3, 2), (8, 1), (16, 1), (16, 2)), ("float32", "float64", "float16"), (False, True)), 5),
)
def test_planes_of_single_taps_are_made_in_registers(sizes: tuple[int, int], dtype: str, stream: bool) -> None:
    channels, filters = sizes
    spec = replace(
        FEW, channels=channels, filters=filters, kernel=(1, 1, 1), pads=NO_PADS, size=(4, 9, 32), dtype=dtype
    )
    algorithm, traits = algorithms("llvm")["planes"], cpu_traits(host_target(2))
    default = algorithm.default(spec, traits)
    assert default is not None
    plan = Plan(spec, "planes", *default)
    assert algorithm.variants(spec, traits)[0] == plan.variant
    assert run_plan(replace(plan, variant=replace(plan.variant, stream=stream))) < BOUNDS[dtype]


def test_results_pass_caches_that_the_input_has_filled() -> None:
    target = resolve(AVX512, 2)
    l3 = cpu_traits(target).l3
    head = replace(FEW, batch=1, channels=8, filters=1, kernel=(1, 1, 1), pads=NO_PADS)
    for cells, expected in ((2 * l3 // 36 // 4096 - 1, False), (2 * l3 // 36 // 4096 + 1, True)):
        plan = default_plan(replace(head, size=(cells, 64, 64)), target)
        assert (plan.algorithm, plan.variant.stream) == ("planes", expected)


def test_tasks_are_bounded_where_none_is_small() -> None:
    """Windows of 2048 channels: no task's copy fits half of L2, and the largest one takes 50 MB."""
    spec = replace(FEW, batch=1, size=(8, 64, 64), channels=2048, filters=1)
    target = resolve(AVX512, 2)
    plan = default_plan(spec, target)
    assert plan.algorithm == "planes"
    traits = cpu_traits(target)
    assert planner.bytes_per_thread(plan, target, planner.DEFAULT_LIMIT) < 1.1 * traits.l3 / traits.cores


def test_the_input_is_read_as_it_is_where_that_will_do() -> None:
    pointwise = replace(DEPTHWISE, size=(4, 9, 32), kernel=(1, 1, 1), pads=NO_PADS, groups=1)
    plan = default_plan(pointwise, host_target(2))
    assert plan.algorithm == "planes" and not plan.variant.gather
    assert run_plan(plan) < BOUNDS["float32"]
    variant = replace(plan.variant, gather=False)
    assert needs_gather(canonicalize(DEPTHWISE), variant)
    with pytest.raises(ValueError, match="padded copy"):
        scheduling.scheduled_module(Plan(DEPTHWISE, "planes", variant, {}), host_target(2))


def test_rows_that_fill_their_vectors_are_left_as_they_lie() -> None:
    target = resolve(AVX512, 2)
    assert default_plan(DEPTHWISE, target).algorithm == "planes"
    assert default_plan(replace(DEPTHWISE, data_format="channels_last"), target).algorithm != "planes"
    assert default_plan(replace(DEPTHWISE, size=(4, 9, 7)), target).algorithm != "planes"


def test_planes_are_made_of_channels_last_for_few_filters() -> None:
    """Vectors of filters would have idle lanes; not where each number is read once, and by many."""
    target = resolve(AVX512, 2)

    def chosen(**change: object) -> str:
        return default_plan(replace(FEW, size=(8, 24, 32), **change), target).algorithm  # type: ignore[arg-type]

    pointwise = {"kernel": (1, 1, 1), "pads": NO_PADS}
    assert {chosen(filters=filters) for filters in (1, 2, 3, 4)} == {"planes"}
    assert chosen(filters=1, channels=8, **pointwise) == "planes"
    assert "planes" not in {
        chosen(filters=8),
        chosen(filters=1, channels=64, **pointwise),
        chosen(filters=4, **pointwise),
    }


def test_winograd_takes_few_filters_where_it_is_the_cheaper() -> None:
    large = replace(FEW, size=(16, 64, 64), channels=48, filters=4)
    assert default_plan(replace(large, kernel=(5, 5, 5)), resolve(AVX512, 2)).algorithm == "winograd"


WIDE = Conv3DSpec(1, (2, 16, 32), 20, 24, (1, 1, 1), data_format=CHANNELS_FIRST)


@pytest.mark.parametrize(("width", "channels"), sampled(itertools.product((32, 31, 40), (20, 70)), 5))
def test_every_way_of_a_pointwise_layer_is_right(width: int, channels: int) -> None:
    spec = replace(WIDE, size=(4, 16, width), channels=channels)
    found = algorithms("llvm")["planes"].variants(spec, cpu_traits(host_target(2)))
    for variant in found:
        assert run_plan(Plan(spec, "planes", variant, {"columns": 4})) < BOUNDS["float32"], variant


@pytest.mark.parametrize(
    "spec",
    [
        # of three taps the outer ones see padding only: what is left is a single tap on a part of each row
        Conv3DSpec(
            1,
            (4, 8, 64),
            8,
            8,
            (1, 1, 3),
            dilation=(1, 1, 48),
            pads=(Pads(0, 0), Pads(0, 0), Pads(32, 32)),
            data_format=CHANNELS_FIRST,
        ),
        replace(WIDE, size=(2, 3, 64), strides=(1, 1, 64)),
        replace(WIDE, size=(2, 3, 64), pads=(Pads(0, 0), Pads(0, 0), Pads(1, 1))),
    ],
)
def test_single_taps_that_see_other_rows_than_they_write(spec: Conv3DSpec) -> None:
    target = host_target(2)
    assert run_plan(default_plan(spec, target)) < BOUNDS["float32"]
    for variant in algorithms("llvm")["planes"].variants(spec, cpu_traits(target)):
        assert run_plan(Plan(spec, "planes", variant, {})) < BOUNDS["float32"], variant


def test_pointwise_layers_that_outgrow_the_caches_read_planes_in_long_rows() -> None:
    """Planes whose rows lie a multiple of 4 KiB apart share the sets of L1: one vector of each took twice the time."""
    traits = cpu_traits(resolve(AVX512, 2))
    planes = algorithms("llvm")["planes"]
    large, small = replace(WIDE, size=(16, 64, 64)), replace(traits, l3=2**20)
    in_caches, past_caches = (planes.default(large, traits)[0] for traits in (traits, small))  # type: ignore[index]
    assert (in_caches.vectors, in_caches.gather, in_caches.stream) == (1, False, False)
    assert (past_caches.vectors, past_caches.gather, past_caches.stream) == (4, False, True)
    # sums of many filters take as long as memory: they had better find their numbers in L1
    many = planes.default(replace(large, filters=256), small)[0]  # type: ignore[index]
    assert (many.vectors, many.gather, many.filters_first) == (1, True, True)


def test_many_filters_in_channels_last_are_refused() -> None:
    plan = first_plan(DEPTHWISE)
    with pytest.raises(ValueError, match="few filters of one group"):
        algorithms("llvm")["planes"].declare(replace(DEPTHWISE, data_format="channels_last"), plan.variant)


def test_the_end_of_a_row_is_stored_with_a_mask() -> None:
    """Straight from the registers: nothing is stored one by one, and what lies behind the row is left alone."""
    text = assembly(DEPTHWISE, AVX512)
    assert re.search(r"vmovups\t%[xyz]mm\d+, .*\{%k\d\}", text)
    assert not re.search("vscatter|vgather", text)


@pytest.mark.parametrize("target", [AVX2, NEON])
def test_other_instruction_sets_overlap_vectors(target: dict[str, object]) -> None:
    text = assembly(replace(DEPTHWISE, size=(4, 9, 31)), target)
    assert not re.search(r"vmaskmovps\t%ymm\d+, %ymm\d+, [^%]*\(", text)
