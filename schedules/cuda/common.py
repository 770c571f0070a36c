"""Pieces that the CUDA schedules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule

LoopRV = Any
BlockRV = Any


def unroll(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    for loop in loops:
        sch.unroll(loop)


def unroll_by_pragma(sch: Schedule, outermost: LoopRV) -> None:
    """Leaves the unrolling of the loops in `outermost` to the device compiler: the source stays short."""
    sch.annotate(outermost, "pragma_unroll_explicit", 0)


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


def spread_over_warps(sch: Schedule, loops: Sequence[LoopRV], warps: int) -> LoopRV:
    """Spreads a copy over the threads of all warps, neighbours side by side; returns the loop of one thread."""
    _, warp, thread = sch.split(sch.fuse(*loops), [None, warps, 32])
    sch.bind(warp, "threadIdx.y")
    sch.bind(thread, "threadIdx.x")
    return thread
