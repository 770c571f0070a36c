"""Design space of the grouped and depthwise convolution on a CPU.

A task owns a box of output cells of one or all blocks of filters. For each block it copies the cells it reads into a
buffer of its own, one vector a cell (of groups of several channels that are not shuffled: one for each of a group's
channels), and computes register tiles in which a row's taps are unrolled, so that a loaded
cell serves all the columns whose windows hold it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.compute.grouped import GroupedVariant, shuffles
from tvm_conv3d.compute.stages import window_extents
from tvm_conv3d.schedules.decisions import Decisions, divisors
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, turn, unroll
from tvm_conv3d.schedules.llvm.rewrites import permuted_loads, pipeline, skip_padding, stream_stores, transpose
from tvm_conv3d.schedules.llvm.rules.tile_rule import (
    TASKS_PER_THREAD,
    fitting_lanes,
    tasks,
    tiles_of,
    worthwhile_sharing,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.targets import CpuTraits

#: Columns of a tile, and of one of a single channel a group: wider ones run out of registers beside the unrolled taps.
_MOST_COLUMNS, _MOST_OF_ONE_CHANNEL = 8, 12

#: Taps of a row times channels of a group up to which both are unrolled.
_MOST_UNROLLED = 32

#: Cycles of copying a vector; how much longer it takes where the channels' other vectors were read before and are gone
#: from L2, and the size of what was read, in L2, from which on they are. Fitted to depthwise layers.
_COPY, _READ_AGAIN, _HELD_BETWEEN_PASSES = 6.0, 1.6, 2

#: How much longer it takes where vectors overhang the filters, as these are copied and stored in pieces.
_OVERHANG = 1.4

#: Lanes up to which vectors are not halved: without AVX-512, half a vector takes as long as a whole one.
_LEAST_LANES = 8

#: Channels and filters of a group from which on its filters alone make vectors that are worth it.
_LEAST_NARROW = 4


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[GroupedVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where :mod:`direct` is as good.

    That is where a group fills whole vectors, where groups had better share vectors that are not made of repeated
    channels, and where repeating a group's many channels costs more than narrow vectors.
    """
    found = _cheapest(spec, traits)
    if found is None:
        return None
    variant, decisions = found
    if not variant.shuffled:
        narrow = min(spec.group_channels, spec.group_filters) >= _LEAST_NARROW
        if narrow or worthwhile_sharing(spec, traits) is not None:
            return None
    return replace(variant, stream=stream_stores.outgrows_caches(spec, traits, variant.lanes)), decisions


def _cheapest(spec: CanonicalSpec, traits: CpuTraits) -> tuple[GroupedVariant, dict[str, int]] | None:
    """The variant and the decisions of least cost; None where a group fills whole vectors."""
    if spec.groups == 1 or spec.group_filters >= traits.lanes(spec.accumulator):
        return None
    lanes = _whole_vectors(spec, fitting_lanes(traits, spec.accumulator, spec.filters))
    width = spec.out_size[2]
    most = _MOST_OF_ONE_CHANNEL if spec.group_channels == 1 else _MOST_COLUMNS
    most = most if traits.registers >= 32 else most // 2
    # overhanging columns are wasted; the taps' weights are loaded once a tile
    columns = min(range(1, min(most, width) + 1), key=lambda c: -(-width // c) * (c + 1))
    variant = GroupedVariant(lanes, 1, columns, shuffled=shuffles(spec, lanes))
    _, (depth, rows, column_tiles) = _best_box(spec, traits, variant)
    few_tasks = tasks(spec, (1, columns), (depth, rows, column_tiles)) < TASKS_PER_THREAD * traits.cores
    variant = replace(variant, parallel_blocks=few_tasks and spec.filters > lanes)
    return variant, {"depth": depth, "rows": rows, "columns": column_tiles}


def cycles(spec: CanonicalSpec, traits: CpuTraits) -> float:
    """What the cost model expects of the default; infinite where there is none."""
    found = _cheapest(spec, traits)
    return _best_box(spec, traits, found[0])[0] if found else math.inf


def _best_box(s: CanonicalSpec, traits: CpuTraits, variant: GroupedVariant) -> tuple[float, tuple[int, int, int]]:
    """The cheapest task (depth, rows and tiles of columns), and the layer's cycles with it."""
    tile = (1, variant.columns)
    item = np.dtype(s.accumulator).itemsize
    # two halves take as long as a whole vector, or less where loads decide
    share = variant.lanes / traits.lanes(s.accumulator)
    multiplied = math.prod(s.kernel) * s.group_channels
    copies = 1 if variant.shuffled else s.group_channels
    overhanging = _OVERHANG if s.filters % variant.lanes else 1.0

    def cost(box: tuple[int, int, int]) -> tuple[bool, bool, float, int, int]:
        cells = math.prod(box) * variant.columns
        copied = math.prod(window_extents(s, (*box[:2], box[2] * variant.columns)))
        again = _READ_AGAIN if copied * s.channels * item > _HELD_BETWEEN_PASSES * traits.l2 else 1.0
        count = tasks(s, tile, box)
        rounds = -(-count // traits.cores) * traits.cores
        each = rounds * (cells * multiplied * share + again * _COPY * copies * copied)
        too_few = count < TASKS_PER_THREAD * traits.cores
        too_large = copied * copies * variant.lanes * item > traits.l2 // 2
        return too_few, too_large, each * overhanging * -(-s.filters // variant.lanes), -box[2], -box[1]

    depth_boxes, row_boxes, column_boxes = map(divisors, tiles_of(s, tile))
    best = min(itertools.product(depth_boxes, row_boxes, column_boxes), key=cost)
    return cost(best)[2], best


def _whole_vectors(s: CanonicalSpec, lanes: int) -> int:
    """`lanes`, or half of them where only those divide the filters: vectors that overhang are copied in pieces."""
    return lanes // 2 if s.filters % lanes and s.filters % (lanes // 2) == 0 and lanes > _LEAST_LANES else lanes


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[GroupedVariant]:
    """The variants that compete while tuning, the default first; none where a group fills whole vectors."""
    found = _cheapest(spec, traits)
    if found is None:
        return []
    first, _ = found
    _, height, width = spec.out_size
    most = max(1, min(width, traits.registers // 2))
    by_waste = sorted(range(1, most + 1), key=lambda columns: (-(-width // columns) * columns, -columns))
    tiles = [first, *(replace(first, columns=columns) for columns in by_waste[:5])]
    if height > 1:
        tiles += [replace(first, rows=2, columns=columns) for columns in by_waste if columns <= most // 2][:2]
    both = [replace(tile, parallel_blocks=parallel) for parallel in (first.parallel_blocks, True) for tile in tiles]
    different = dict.fromkeys(both if spec.filters > first.lanes else tiles)
    return [*different, *stream_stores.streaming(spec, first, first.lanes)]


def finish(module: IRModule, spec: CanonicalSpec) -> IRModule:
    """What is changed after scheduling: taps that see only padding are skipped."""
    return pipeline.finished(module)


def apply(sch: Schedule, spec: CanonicalSpec, variant: GroupedVariant, decide: Decisions) -> None:
    """Schedules `compute.grouped.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output cells of a task, the latter two in register tiles.
    """
    last = spec.data_format == CHANNELS_LAST
    if last:
        n, d, h, w, f = sch.get_loops(sch.get_sblock("out"))
    else:
        n, f, d, h, w = sch.get_loops(sch.get_sblock("out"))
    row_tiles, hi = sch.split(h, [None, variant.rows])
    column_tiles, wi = sch.split(w, [None, variant.columns])
    block, lane = sch.split(f, [None, variant.lanes])
    d_task, d_in = decide.tile("depth", d, default=1)
    h_task, h_in = decide.tile("rows", row_tiles, default=4)
    w_task, w_in = decide.tile("columns", column_tiles, default=16)
    inner = (hi, wi, lane) if last else (lane, hi, wi)
    sch.reorder(n, d_task, h_task, w_task, block, d_in, h_in, w_in, *inner)
    if variant.parallel_blocks:
        task = copy_at = sch.fuse(n, d_task, h_task, w_task, block)
    else:
        task, copy_at = sch.fuse(n, d_task, h_task, w_task), block
    sch.parallel(task)
    if variant.shuffled:
        permuted_loads.mark(sch)
    if variant.stream:
        stream_stores.mark(sch)

    if last and spec.filters % variant.lanes == 0:
        sch.compute_inline(sch.get_sblock("tile"))
        unroll(sch, (hi, wi))
        sch.vectorize(lane)
    elif last:
        tile = place(sch, "tile", w_in)
        _, rows, _, columns, lanes = sch.get_loops(tile)[-5:]
        unroll(sch, (rows, columns))
        sch.vectorize(lanes)
    else:
        turn(sch, w_in, wi, spec.out_size[2])
    conv = place(sch, "conv", w_in)
    _, hi, _, wi, lanes, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-9:]
    if variant.rows == 1:
        skip_padding.mark(sch, spec, {0: tap_d, 1: tap_h}, {0: 2, 1: 3})
    along_row = (channel, tap_w)
    if spec.kernel[2] * spec.group_channels <= _MOST_UNROLLED:
        unroll(sch, along_row)
    elif variant.shuffled:
        # an exchange of lanes is part of the code
        along_row = (tap_w, channel)
        sch.unroll(channel)
    keep_in_registers(sch, conv, (tap_d, tap_h, *along_row), (hi, wi, lanes))
    gather = sch.get_sblock("gather")
    sch.compute_at(gather, copy_at, preserve_unit_loops=True)
    width, channel, lane = sch.get_loops(gather)[-3:]
    if not last:
        sch.reorder(channel, lane, width)
        transpose.mark(sch, lane, width)
    elif spec.filters % variant.lanes == 0:
        sch.vectorize(lane)
