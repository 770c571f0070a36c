"""How Winograd's first and last kernel move whole planes of tiles through shared memory, in channels_first.

See :mod:`tvm_conv3d.compute.cuda.winograd_planes`. The threads of a block are numbered along tiles, rows of tiles, and
channels or filters; all of them together copy in the order of memory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import BANKS, extents_of, plane_bytes, tiles_of_slab
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import BlockRV, LoopRV, unroll
from tvm_conv3d.schedules.decisions import Decisions, divisors

#: Neighbouring tiles and rows of them that a block takes at least, where there are so many: those of a warp.
WARP = 32

#: Threads of a block with several channels, bytes of its shared memory, and threads along the last axis, at most.
_THREADS, _SHARED, _MAX_ALONG_Z = 128, 24 << 10, 64

#: Loops of blocks and of threads.
LOOPS = 6

#: Warps whose conflicts are counted, and elements after the last one's at which the next one copies.
_LOOKED_AT, _ASIDE = 8, 4


def transform_planes(sch: Schedule, s: CanonicalSpec, variant: WinogradGemmVariant, decide: Decisions) -> None:
    """Spreads the input's transforms over threads, whose blocks bring what lies under whole planes of tiles.

    Decisions: `near_data`: rows of tiles of a block.
    """
    e = extents_of(s, variant)
    parts = e.axes.parts[2]
    near, channels = _shares(s, variant, 0, parts * e.slice, e.steps * variant.step)
    frequency, c, plane, row, part, t = sch.get_loops(sch.get_sblock("data"))
    rows = decide.choice("near_data", [d for d in divisors(e.rows) if d <= near], near)
    row, near_row = sch.split(row, [None, rows])
    c, channel = sch.split(c, [None, channels])
    sch.reorder(plane, row, c, channel, near_row, part, t, frequency)
    sch.unroll(frequency)
    hold(sch, ("input_d", "input_h", "input_w", "window"), variant, t, LOOPS + 1)
    slab = sch.get_sblock("slab")
    sch.set_scope(slab, 0, "shared")
    sch.compute_at(slab, c, preserve_unit_loops=True)
    # now that TVM has seen what a block needs, which it would not through quotients
    _bind(sch, (plane, row, c), (channel, sch.fuse(near_row, part), t))
    places = (parts, e.frequencies[0], *variant.tile[1:], near, *tiles_of_slab(variant, e))
    _align(sch, slab, bank_offsets(places, e.slice, e.tiles[2]))
    channel, part, depth, dy, dx, plane, row, y, x = sch.get_loops(slab)[-9:]
    in_memory = (channel, plane, row, depth, y, dy, x, dx, part)
    sch.reorder(*in_memory)
    _spread(sch, in_memory, (channels, rows, parts, e.slice))


def transform_planes_back(sch: Schedule, s: CanonicalSpec, variant: WinogradGemmVariant, decide: Decisions) -> LoopRV:
    """Spreads the inverse transforms over threads, and the store of whole planes; returns the loop of one thread.

    Decisions: `near_out`: rows of tiles of a block.
    """
    e = extents_of(s, variant)
    depth, down, across = e.tiles
    parts = e.axes.parts[2]
    near, filters = _shares(s, variant, 1, parts * down * across, e.filter_blocks * variant.filters)
    plane, row, g, *inside = sch.get_loops(sch.get_sblock("out"))
    rows = decide.choice("near_out", [d for d in divisors(depth) if d <= near], near)
    row, near_row = sch.split(row, [None, rows])
    g, filter_ = sch.split(g, [None, filters])
    sch.reorder(plane, row, g, filter_, near_row, *inside)
    tile = sch.get_sblock("tile")
    sch.set_scope(tile, 0, "shared")
    sch.compute_at(tile, g, preserve_unit_loops=True)
    of_tile, part, i, j, k, near_plane, row_of_tile, y, x = sch.get_loops(tile)[-9:]
    sch.reorder(of_tile, near_plane, row_of_tile, part, y, x, i, j, k)
    thread = sch.fuse(y, x)
    _bind(sch, (plane, row, g), (of_tile, sch.fuse(near_plane, row_of_tile, part), thread))
    unroll(sch, (i, j, k))
    _align(sch, tile, bank_offsets((parts, *variant.tile, near, down, across), down * across, across))
    _spread(sch, (filter_, near_row, *inside), (filters, rows, parts, down * across))
    return thread


@functools.cache
def bank_offsets(places: tuple[int, ...], tiles: int, across: int) -> tuple[int, int]:
    """Banks between the rows, and the columns, of a tile's places, by which warps have the fewest conflicts.

    Args:
        places: extents in the order of shared memory, but for channels: parts, a tile's depth, height and width; rows
            of tiles, tiles along height and width.
        tiles: threads of a row of tiles and part.
        across: tiles of these along the width.
    """
    parts, depth, high, wide, rows, down, columns = places
    warp, lane = np.arange(_LOOKED_AT)[:, None], np.arange(WARP)
    # blocks may have no whole number of warps: those that copy begin anywhere
    copies, threads = warp * (WARP + _ASIDE) + lane, warp * WARP + lane
    # in the order of memory: channel, row of tiles, depth, tile along height, row in it, along width, column, part
    c, row, i, y, dy, z, dx, p = np.unravel_index(
        copies, (copies.max() + 1, rows, depth, down, high, columns, wide, parts)
    )
    # of a thread: channel, row of tiles, part, tile
    of_c, of_row, of_p, t = np.unravel_index(threads, (threads.size, rows, parts, tiles))
    copied, moved = row * down + y, of_row * down + t // across

    def conflicts(offsets: tuple[int, int]) -> tuple[float, int]:
        of_high, of_wide = offsets
        banks = ((c * parts + p) * depth + i) * high * of_high + dy * of_high + dx * of_wide + copied * columns + z
        others = (of_c * parts + of_p) * depth * high * of_high + moved * columns + t % across
        return max(_wavefronts(banks), _wavefronts(others)), sum(offsets)

    return min(itertools.product(range(BANKS), range(BANKS)), key=conflicts)


def _wavefronts(banks: np.ndarray) -> float:
    """Of a warp on average, whose lanes ask for words in these banks."""
    warp = np.arange(len(banks))[:, None] * BANKS
    return float(np.bincount((warp + banks % BANKS).ravel(), minlength=banks.size).reshape(-1, BANKS).max(1).mean())


def _align(sch: Schedule, stage: BlockRV, offsets: tuple[int, int]) -> None:
    """Lets the rows and the columns of a tile's places begin so many banks apart."""
    for axis, offset in zip((3, 4), offsets, strict=True):
        sch.storage_align(stage, 0, axis, BANKS, offset)


def hold(sch: Schedule, names: Iterable[str], variant: WinogradGemmVariant, thread: LoopRV, outer: int) -> None:
    """Places stages, the last first, in the registers of a thread; loops are unrolled, as registers have no index.

    Args:
        sch: the schedule.
        names: of the stages.
        variant: the variant.
        thread: the loop of a thread.
        outer: loops of blocks and threads.
    """
    untransformed = [axis for axis, m in zip("dhw", variant.tile, strict=True) if m == 1]
    absent = [f"{way}_{axis}" for way in ("input", "output") for axis in untransformed]
    for name in names:
        if name in absent:
            continue
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        unroll(sch, sch.get_loops(stage)[outer:])


def _shares(s: CanonicalSpec, variant: WinogradGemmVariant, kernel: int, tiles: int, others: int) -> tuple[int, int]:
    """Rows of tiles, and channels or filters, of a block.

    Args:
        s: the problem.
        variant: the variant.
        kernel: 0 for the first, 1 for the last.
        tiles: threads of a row.
        others: channels or filters in all.
    """
    e = extents_of(s, variant)

    def fits(rows: int, others: int, threads: int) -> bool:
        return rows * others * tiles <= threads and others * plane_bytes(s, variant, rows)[kernel] <= _SHARED

    near = max(d for d in divisors((e.rows, e.tiles[0])[kernel]) if d == 1 or fits(d, 1, WARP))
    return near, max(d for d in divisors(others) if d == 1 or (fits(near, d, _THREADS) and d <= _MAX_ALONG_Z))


def _bind(sch: Schedule, blocks: Sequence[LoopRV], threads: Sequence[LoopRV]) -> None:
    """Binds loops to the axes of a grid, and from the slowest threads to the fastest."""
    for loop, axis in zip((*blocks, *threads), ("bx", "bz", "by", "tz", "ty", "tx"), strict=True):
        sch.bind(loop, {"b": "blockIdx.", "t": "threadIdx."}[axis[0]] + axis[1])


def _spread(sch: Schedule, loops: Sequence[LoopRV], threads: Sequence[LoopRV]) -> None:
    """Spreads a copy over channels or filters, rows, parts and tiles of a block's threads."""
    _, others, rows, parts, tiles = sch.split(sch.fuse(*loops), [None, *threads])
    for loop, axis in ((others, "z"), (sch.fuse(rows, parts), "y"), (tiles, "x")):
        sch.bind(loop, f"threadIdx.{axis}")
