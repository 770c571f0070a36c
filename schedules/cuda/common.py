"""Pieces that the CUDA schedules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule

LoopRV = Any
BlockRV = Any

#: Annotation of a loop over blocks, and then attribute of the function: registers that its threads may have.
REGISTERS = "tvm_conv3d.registers"

#: TVM's annotation of a loop whose copies are asynchronous.
PIPELINED = "software_pipeline_async_stages"

#: Threads of a block that adds the parts of a reduction.
ADDING_THREADS = 128


def unroll(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    for loop in loops:
        sch.unroll(loop)


def unroll_by_pragma(sch: Schedule, outermost: LoopRV) -> None:
    """Leaves the unrolling of the loops in `outermost` to the device compiler: the source stays short."""
    sch.annotate(outermost, "pragma_unroll_explicit", 0)


def pipeline(sch: Schedule, step: LoopRV, stages: int) -> None:
    """Lets the two copies that begin a turn of a loop run ahead of its rest by `stages` - 1 turns, asynchronously."""
    sch.annotate(step, "software_pipeline_stage", [0, 0, stages - 1])
    sch.annotate(step, "software_pipeline_order", [0, 1, 2])
    sch.annotate(step, PIPELINED, [0])


def spread_over_threads(sch: Schedule, loops: Sequence[LoopRV], threads: int, vector: LoopRV | None = None) -> None:
    """Spreads a copy into shared memory over the threads of a block, neighbours side by side.

    Args:
        sch: the schedule.
        loops: of the copy, outer ones first; they are fused.
        threads: of the block.
        vector: an innermost loop that one thread copies at once.
    """
    fused = sch.fuse(*loops)
    _, thread = sch.split(fused, [None, threads])
    sch.bind(thread, "threadIdx.x")
    if vector is not None:
        sch.vectorize(vector)


def add_parts(sch: Schedule) -> None:
    """The kernel that adds the parts of a reduction and finishes the tiles: each thread a vector of the output."""
    *loops, lane = sch.get_loops(sch.get_sblock("out"))
    block, thread = sch.split(sch.fuse(*loops), [None, ADDING_THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    for name in ("tile", "total"):
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        lane = sch.get_loops(stage)[-1 if name == "tile" else -2]
        sch.unroll(lane)
    part = sch.get_loops(stage)[-1]
    sch.reorder(part, lane)
    sch.unroll(sch.get_loops(sch.decompose_reduction(stage, part))[-1])


def spread_over_warps(sch: Schedule, loops: Sequence[LoopRV], warps: int) -> LoopRV:
    """Spreads a copy over the threads of all warps, neighbours side by side; returns the loop of one thread."""
    _, warp, thread = sch.split(sch.fuse(*loops), [None, warps, 32])
    sch.bind(warp, "threadIdx.y")
    sch.bind(thread, "threadIdx.x")
    return thread
