"""Pieces that the CUDA schedules share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.spec import CHANNELS_LAST

LoopRV = Any
BlockRV = Any

#: Annotation of a loop over blocks, and then attribute of the function: registers that its threads may have.
REGISTERS = "tvm_conv3d.registers"

#: TVM's annotation of a loop whose copies are asynchronous.
PIPELINED = "software_pipeline_async_stages"

#: Threads of a block that adds the parts of a reduction.
ADDING_THREADS = 128

#: Elements after which rows in shared memory begin in the same bank, and by how many they are lengthened.
BANKS, SKEW = 32, 4

#: Strides up to which neighbouring positions are read in no more than twice the sectors of neighbouring elements.
_NEAR_STRIDES = 2

#: Bytes that a thread reads at once, at most.
_AT_ONCE = 16


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


def add_parts(sch: Schedule, filters_last: bool) -> None:
    """The kernel that adds the parts of a reduction and finishes the tiles: each thread a vector of the output.

    Args:
        sch: the schedule.
        filters_last: whether neighbouring threads store neighbouring filters, else neighbouring positions.
    """
    *loops, i, j, lane = sch.get_loops(sch.get_sblock("out"))
    order = (i, j) if filters_last else (j, i)
    sch.reorder(*order, lane)
    block, thread = sch.split(sch.fuse(*loops, *order), [None, ADDING_THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    for name in ("tile", "total"):
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        if name == "tile":
            sch.unroll(sch.get_loops(stage)[-1])
            if filters_last:
                read_at_once(sch, stage, "bias", thread)
    *_, lane, part = sch.get_loops(stage)
    vectors, lane = in_vectors(sch, stage, lane)
    sch.reorder(part, vectors, lane)
    sch.unroll(sch.get_loops(sch.decompose_reduction(stage, part))[-2])
    sch.unroll(vectors)


def reads_along_terms(spec: CanonicalSpec, flat: bool) -> bool:
    """Whether neighbouring threads read neighbouring terms of the reduction, else neighbouring positions.

    Where terms are taps, as of one channel, which lies in the same places in both layouts, neighbouring ones are as
    near as neighbouring positions, and go on for less, but where the windows of positions lie apart.
    """
    if spec.channels == 1 or (flat and spec.data_format != CHANNELS_LAST):
        return spec.strides[2] > _NEAR_STRIDES
    return spec.data_format == CHANNELS_LAST


def in_vectors(sch: Schedule, stage: BlockRV, loop: LoopRV) -> tuple[LoopRV, LoopRV]:
    """Cuts the innermost loop of a stage into vectors of what a thread reads at once; returns the loops of them."""
    item = sch.get(stage).writes[0].source.dtype.itemsize
    vectors, lane = sch.split(loop, [None, math.gcd(int(sch.get(loop).extent), _AT_ONCE // item)])
    sch.vectorize(lane)
    return vectors, lane


def read_at_once(sch: Schedule, stage: BlockRV, name: str, at: LoopRV) -> None:
    """Reads at a loop what a stage needs of an operand in the kernel's memory in vectors, where it needs any of it."""
    names = [region.source.name for region in sch.get(stage).reads]
    if name not in names:
        return
    operand = sch.cache_read(stage, names.index(name), "local")
    sch.compute_at(operand, at, preserve_unit_loops=True)
    *_, outer, innermost = sch.get_loops(operand)
    if int(sch.get(innermost).extent) == 1:
        innermost = sch.fuse(outer, innermost)
    vectors, _ = in_vectors(sch, operand, innermost)
    sch.unroll(vectors)


def finish_tile(sch: Schedule, thread: LoopRV, filters_last: bool) -> None:
    """Finishes a tile whose reduction has no parts: in registers, where its thread stores it.

    Args:
        sch: the schedule.
        thread: the loop at which the tile is stored.
        filters_last: as of :func:`add_parts`.
    """
    tile = sch.get_sblock("tile")
    sch.set_scope(tile, 0, "local")
    sch.compute_at(tile, thread, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(tile)[-2:])
    if filters_last:
        read_at_once(sch, tile, "bias", thread)


def spread_over_warps(sch: Schedule, loops: Sequence[LoopRV], warps: int) -> LoopRV:
    """Spreads a copy over the threads of all warps, neighbours side by side; returns the loop of one thread."""
    _, warp, thread = sch.split(sch.fuse(*loops), [None, warps, 32])
    sch.bind(warp, "threadIdx.y")
    sch.bind(thread, "threadIdx.x")
    return thread
