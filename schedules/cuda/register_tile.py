"""Loops of a matrix product whose tiles threads sum in registers: what the schedules on CUDA cores share.

A block of threads owns a tile of positions by filters; each thread sums a small tile of it, from steps of both matrices
that the threads of the block bring into shared memory together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm.s_tir import Schedule

from tvm_conv3d.schedules.cuda.common import (
    BlockRV,
    LoopRV,
    add_parts,
    finish_tile,
    spread_over_threads,
    unroll,
    unroll_by_pragma,
)
from tvm_conv3d.schedules.decisions import Decisions, divisors


class Tile(Protocol):
    """What the variants of such products have: extents of a tile, and threads along its sides."""

    @property
    def cells(self) -> int: ...
    @property
    def filters(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def threads_cells(self) -> int: ...
    @property
    def threads_filters(self) -> int: ...


class CutTile(Tile, Protocol):
    """The same of those that store vectors, and may cut the reduction into parts."""

    @property
    def store(self) -> int: ...
    @property
    def parts(self) -> int: ...


@dataclass(frozen=True)
class Sums:
    """A product that is placed.

    Attributes:
        product: its block.
        taps: the outermost loop of its reduction.
        step: the loop at which the matrices are brought.
    """

    product: BlockRV
    taps: LoopRV
    step: LoopRV


def bind_tile(
    sch: Schedule, store: str, tile: Tile, lanes: int, filters_last: bool, decide: Decisions, stages: int = 1
) -> LoopRV:
    """Binds the loops over tiles and inside one to blocks and threads; returns the loop of one thread's share.

    Decisions: `near_cells`, `near_filters`: neighbouring positions and filters of a thread's tile, the rest of which
        lies
    `threads` of these apart (virtual threads).

    Args:
        sch: the schedule.
        store: name of the block that stores the tiles; its last loops are positions, filters and lanes.
        tile: the tile.
        lanes: extent of the innermost loop, a part of the filters or of the positions.
        filters_last: whether it is of the filters, which neighbouring threads then store.
        decide: the decisions.
        stages: steps that are on their way at once.
    """
    *tiles, i, j, lane = sch.get_loops(sch.get_sblock(store))
    block = sch.fuse(*tiles)
    inner = []
    for name, loop, size, threads, vector in (
        ("near_cells", i, tile.cells, tile.threads_cells, 1 if filters_last else lanes),
        ("near_filters", j, tile.filters, tile.threads_filters, lanes if filters_last else 1),
    ):
        near = divisors(size // threads // vector)
        default = max(d for d in near if d * vector <= max(4, vector))
        inner.append(sch.split(loop, [None, threads, decide.choice(name, near, default)]))
    (far_i, thread_i, near_i), (far_j, thread_j, near_j) = inner
    # neighbouring threads store neighbouring elements
    order = (thread_i, thread_j) if filters_last else (thread_j, thread_i)
    sch.reorder(far_i, far_j, *order, near_i, near_j, lane)
    far, thread = sch.fuse(far_i, far_j), sch.fuse(*order)
    for loop, axis in ((block, "blockIdx.x"), (far, "vthread.x"), (thread, "threadIdx.x")):
        sch.bind(loop, axis)
    if stages == 1:
        # else the compiler would find the waits of the last steps with loop variables in their operands
        unroll_by_pragma(sch, block)
    unroll(sch, (near_i, near_j))
    if lanes > 1:
        sch.vectorize(lane)
    return thread


def sum_in_registers(
    sch: Schedule, thread: LoopRV, taps: int, step: int, decide: Decisions, fused: bool = False
) -> Sums:
    """Places the block `product`, whose reduction is over `taps` axes of taps, steps and terms.

    Decisions: `unroll`: terms of a step that are unrolled.

    Args:
        sch: the schedule.
        thread: the loop of one thread's share.
        taps: axes.
        step: terms of a step.
        decide: the decisions.
        fused: whether one loop goes over the steps of all taps.
    """
    product = sch.get_sblock("product")
    sch.set_scope(product, 0, "local")
    sch.compute_at(product, thread, preserve_unit_loops=True)
    i, j, *outer, terms = sch.get_loops(product)[-4 - taps :]
    far, few = decide.tile("unroll", terms, default=step)
    sch.reorder(*outer, far, few, i, j)
    unroll(sch, (few, i, j))
    if fused:
        outer = [sch.fuse(*outer)]
    return Sums(product, outer[0], outer[-1])


def place_tiles(
    sch: Schedule, tile: CutTile, filters_last: bool, taps: int, decide: Decisions, stages: int = 1
) -> Sums:
    """Binds the tiles of a product that is finished in the block `tile`, and stored in vectors; places their sums.

    Where the reduction is cut, sums are kept by `partial`, and added by a second kernel.

    Args:
        sch: the schedule.
        tile: the tile.
        filters_last: whether a vector is of filters, else of positions.
        taps: axes of taps that the reduction goes over where it is not cut, and no copies run ahead.
        decide: the decisions, of :func:`bind_tile` and :func:`sum_in_registers`.
        stages: steps that are on their way at once.
    """
    whole = tile.parts == 1
    store = "out" if whole else "partial"
    if not (whole or filters_last):
        *_, filters, cells, _ = sch.get_loops(sch.get_sblock(store))
        sch.reorder(cells, filters)
    thread = bind_tile(sch, store, tile, tile.store, filters_last, decide, stages)
    if whole:
        finish_tile(sch, thread, filters_last)
    else:
        add_parts(sch, filters_last)
    return sum_in_registers(sch, thread, taps if whole and stages == 1 else 0, tile.step, decide)


def fetch_kernel(sch: Schedule, sums: Sums, tile: Tile, lanes: int) -> None:
    """Brings a step of the weights into shared memory, `lanes` at once."""
    kernel = sch.cache_read(sums.product, 1, "shared", consumer_blocks=[sums.product])
    sch.compute_at(kernel, sums.step, preserve_unit_loops=True)
    term, j = sch.get_loops(kernel)[-2:]
    j, vector = sch.split(j, [None, lanes])
    spread_over_threads(sch, (term, j), tile.threads_cells * tile.threads_filters, vector)


def clear(sch: Schedule, sums: Sums) -> None:
    """Sets the sums to zero before the reduction."""
    start = sch.decompose_reduction(sums.product, sums.taps)
    unroll(sch, sch.get_loops(start)[-2:])
