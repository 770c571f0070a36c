"""Pieces that the CPU schedules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule

from tvm_conv3d.schedules.llvm.passes import transpose_copies, vectorize_row_stores

LoopRV = Any
BlockRV = Any

#: Trips of a copy loop above which it is left to LLVM rather than written as one vector.
_LONGEST_VECTOR = 64


def unroll(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    for loop in loops:
        sch.unroll(loop)


def place(sch: Schedule, name: str, loop: LoopRV) -> BlockRV:
    """Computes block `name` inside `loop`, in registers or on the stack, keeping the number of its loops."""
    block = sch.get_sblock(name)
    sch.compute_at(block, loop, preserve_unit_loops=True)
    sch.set_scope(block, 0, "local")
    return block


def keep_in_registers(sch: Schedule, block: BlockRV, reduction: Sequence[LoopRV], tile: Sequence[LoopRV]) -> None:
    """Orders a reduction block as reduction outside, register tile inside; the innermost tile loop is the vector."""
    sch.reorder(*reduction, *tile)
    unroll(sch, tile[:-1])
    sch.vectorize(tile[-1])
    start = sch.decompose_reduction(block, reduction[0])
    loops = sch.get_loops(start)[-len(tile) :]
    unroll(sch, loops[:-1])
    sch.vectorize(loops[-1])


def in_registers(sch: Schedule, outer: Sequence[LoopRV], row: LoopRV, lane: LoopRV) -> None:
    """A small matrix times vectors: all rows unrolled, so that the sums they share are computed once."""
    sch.reorder(*outer, row, lane)
    sch.unroll(row)
    sch.vectorize(lane)


def vectorize_copy(sch: Schedule, loop: LoopRV, lanes: int) -> None:
    """Writes a copy loop as vectors where they fit; elsewhere LLVM makes of it what it can."""
    extent = int(sch.get(loop).extent)
    if extent % lanes == 0:
        sch.vectorize(sch.split(loop, [None, lanes])[1])
    elif extent <= _LONGEST_VECTOR:
        sch.vectorize(loop)


def transpose_sums(sch: Schedule, at: LoopRV, row: LoopRV, length: int | None) -> None:
    """Transposes block "transposed" inside loop `at`, then stores a row of each filter by vectors.

    Args:
        sch: the schedule.
        at: the loop in which the sums of one part of the output are complete.
        row: the loop of the store along a row, the innermost.
        length: of a row of the output; None where its positions do not lie side by side.
    """
    transposed = place(sch, "transposed", at)
    lanes, columns = sch.get_loops(transposed)[-2:]
    transpose_copies.mark(sch, columns, lanes)
    if length is not None:
        vectorize_row_stores.mark(sch, row, length)


def store_in_order(sch: Schedule, filters: LoopRV, lanes: int) -> None:
    """Stores filters of interleaved groups, of one set after the other, as vectors whose lanes change their places."""
    shared = int(sch.get(filters).extent)
    if shared % lanes == 0:
        vector, filters = sch.split(filters, [None, lanes])
        sch.unroll(vector)
    sch.vectorize(filters)


def gather_interleaved(sch: Schedule, channel: LoopRV, interleaved: LoopRV) -> None:
    """Copies the channels of interleaved groups: LLVM reads vectors of each group, and shuffles them."""
    sch.reorder(channel, interleaved)
    sch.unroll(interleaved)
