"""Copies that change the layout, transposed in registers: their numbers and their instructions."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.transform import CompactBufferAllocation

from problems import BOUNDS, assert_right, data, execute, fenced
from sampling import sampled
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.schedules.llvm.passes import lower_to_loops, marks, pipeline, transpose_copies
from tvm_conv3d.schedules.llvm.passes.transpose_function import transpose_function
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

DENSE = Conv3DSpec(
    1,
    (5, 9, 19),
    21,
    37,
    (3, 3, 3),
    pads=(Pads(1, 1), Pads(1, 1), Pads(1, 1)),  # type: ignore[arg-type]
    data_format=CHANNELS_FIRST,
    post_ops=("relu",),
)
TARGETS = {
    "avx512": {"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"},
    "avx2": {"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"},
    "sse": {"kind": "llvm", "mcpu": "x86-64", "mtriple": "x86_64-linux-gnu"},
    "neon": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"},
}


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("columns", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_shuffles_transpose(dtype: str, rows: int, columns: int) -> None:
    """Replays the text: what is stored at column c is row after row of that column."""
    _, text = transpose_function(dtype, rows, columns)
    vectors = {f"%v{r}": [(r, c) for c in range(columns)] for r in range(rows)}
    shuffle = re.compile(r"(%s\d+) = shufflevector <[^>]*> (%\w+), <[^>]*> (%\w+), <[^>]*> <([^>]*)>")
    for result, a, b, mask in shuffle.findall(text):
        both = vectors[a] + vectors[b]
        vectors[result] = [both[int(pick.split()[1])] for pick in mask.split(",")]
    stored = re.findall(r"store <[^>]*> (%\w+), ptr %p(\d+)", text)
    assert [int(c) for _, c in stored] == list(range(columns))
    for name, c in stored:
        assert vectors[name] == [(r, int(c)) for r in range(rows)]


CHANGES: list[dict[str, object]] = [
    {},
    {"size": (3, 4, 1)},
    {"size": (2, 3, 70), "channels": 3},
    {"channels": 80, "filters": 16, "kernel": (1, 1, 1), "pads": (Pads(0, 0),) * 3, "size": (3, 5, 31)},
    {"strides": (2, 2, 2)},
    {"strides": (1, 3, 5)},
    {"dilation": (1, 2, 2), "size": (5, 8, 20)},
    {"groups": 21, "filters": 21},
    {"groups": 7, "filters": 14},
    {"filters": 1},
    {"pads": (Pads(0, 2), Pads(3, 0), Pads(5, 4)), "batch": 2},
]


@pytest.mark.parametrize(("change", "dtype"), sampled(itertools.product(CHANGES, BOUNDS), 3))
def test_channels_first_is_right(change: dict[str, object], dtype: str) -> None:
    assert_right(replace(DENSE, dtype=dtype, post_ops=(), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "name"),
    sampled(
        itertools.product(({}, {"strides": (2, 2, 2)}, {"groups": 21, "filters": 21}, {"dtype": "float16"}), TARGETS),
        3,
    ),
)
def test_all_targets_compile(change: dict[str, object], name: str) -> None:
    spec = replace(DENSE, **change)  # type: ignore[arg-type]
    target = resolve(TARGETS[name], 2)
    assert build.compile_plan(default_plan(spec, target), target).object_code


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("avx512", r"vunpcklps\s.*%zmm"), ("avx2", r"vunpcklps\s.*%ymm"), ("neon", r"zip1\s+v\d+\.4s")],
)
def test_vectors_are_shuffled(name: str, instruction: str) -> None:
    """Whole vectors are interleaved; no element is stored or gathered by itself in channels_first."""
    import tvm

    target = resolve(TARGETS[name], 2)
    spec = replace(DENSE, size=(5, 9, 32), channels=32, filters=32)
    plan = default_plan(spec, target)
    module = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    text = str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm"))
    assert len(re.findall(instruction, text)) >= 8
    assert not re.search("vscatter|vgather", text)


def written_by_calls(module: IRModule) -> list[tuple[str, int]]:
    """Name and elements of each buffer that is written in rows or transposed, or copied in runs."""
    found: list[tuple[str, int]] = []

    def on_buffer(statement: tirx.AllocBuffer) -> None:
        if statement.buffer.name.startswith(("gather", "transposed", "out")):
            found.append((statement.buffer.name, math.prod(int(extent) for extent in statement.buffer.shape)))

    tvm_ffi.structural_walk(module["main"].body, (tirx.AllocBuffer, on_buffer))
    return found


@pytest.mark.parametrize(
    ("algorithm", "change"),
    [
        ("direct", {}),
        ("direct", {"size": (1, 17, 3), "channels": 3, "filters": 70}),
        ("grouped", {"groups": 7, "filters": 14}),
        ("grouped", {"groups": 21, "filters": 21, "size": (5, 9, 32)}),
        ("winograd", {}),
        ("winograd", {"groups": 3, "filters": 72}),
        ("winograd", {"groups": 3, "filters": 96}),
        ("winograd", {"groups": 3, "filters": 18}),
        ("planes", {"size": (5, 9, 32)}),
    ],
)
def test_buffers_stay_as_large_as_what_is_accessed(algorithm: str, change: dict[str, object]) -> None:
    """TVM's passes shrink a buffer to what they see of it, and lay it on the stack: they must see calls access it."""
    target, spec = resolve(TARGETS["avx512"], 2), replace(DENSE, **change)  # type: ignore[arg-type]
    rule = algorithms("llvm")[algorithm]
    for variant in rule.variants(spec, cpu_traits(target))[:8]:
        schedule = Schedule(rule.declare(spec, variant).module(), seed=1)
        rule.apply(schedule, spec, variant, Decisions(schedule, None))
        module = pipeline.lowered(lower_to_loops.to_small_buffers(pipeline.finished(schedule.mod)), target)
        assert written_by_calls(module)
        assert written_by_calls(CompactBufferAllocation()(module)) == written_by_calls(module), variant


def test_strips_stay_as_large_as_the_runs_that_are_copied_from_them() -> None:
    target = resolve(TARGETS["avx512"], 2)
    spec = replace(DENSE, size=(16, 48, 48), data_format=CHANNELS_LAST)
    rule = algorithms("llvm")["direct"]
    strips = [variant for variant in rule.variants(spec, cpu_traits(target)) if variant.order == "strips"]
    schedule = Schedule(rule.declare(spec, strips[0]).module(), seed=1)
    rule.apply(schedule, spec, strips[0], Decisions(schedule, {"strip": 2}))
    module = pipeline.lowered(lower_to_loops.to_small_buffers(pipeline.finished(schedule.mod)), target)
    strip = [size for name, size in written_by_calls(module) if name.startswith("out")]
    assert strip == [2 * strips[0].rows * strips[0].columns * spec.filters]
    assert written_by_calls(CompactBufferAllocation()(module)) == written_by_calls(module)


def test_channels_last_needs_none() -> None:
    target = resolve(TARGETS["avx512"], 2)
    for data_format in (CHANNELS_LAST, CHANNELS_FIRST):
        spec = replace(DENSE, channels=32, data_format=data_format)
        module = scheduling.scheduled_module(default_plan(spec, target), target)
        assert (transpose_copies.TRANSPOSES in marks.waiting(module["main"])) == (data_format == CHANNELS_FIRST)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("width", [64, 65, 66])
def test_nothing_behind_the_input_is_read(width: int, stride: int) -> None:
    """The input ends where the process may read no further. TVM simplifies `2 * w + 1 < 66` to `w < 33`."""
    spec = Conv3DSpec(
        2,
        (3, 6, width),
        8,
        16,
        (3, 3, 3),
        (1, 1, stride),
        pads=(Pads(1, 1),) * 3,  # type: ignore[arg-type]
        groups=8,
        data_format=CHANNELS_FIRST,
    )
    x, kernel, bias = data(spec)
    plan = default_plan(spec, host_target(2))
    assert plan.algorithm == "planes"
    out, _ = execute(plan, fenced(x), kernel, bias)
    assert oracle.relative_error(out, oracle.convolve(spec, x, kernel, bias)) < 2e-6


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_bounds_of_a_row_end_with_its_last_element(stride: int, below: bool) -> None:
    w = ir.Var("w", "int32")
    found = index_analysis.bounds([w >= 5 if below else w < 33], w, stride)
    expected = ([5 * stride], []) if below else ([], [32 * stride + 1])
    assert (list(map(int, found.first)), list(map(int, found.end))) == expected
