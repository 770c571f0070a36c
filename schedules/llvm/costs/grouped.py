"""Which variants of the grouped convolution there are on a CPU, what they cost, and which one is taken untuned."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.grouped import GroupedVariant, shuffles
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import window_extents
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs import streaming
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    TASKS_PER_THREAD,
    fitting_lanes,
    tasks,
    tiles_of,
    worthwhile_sharing,
)
from tvm_conv3d.target.cpu import CpuTraits

#: Columns of a tile, and of one of a single channel a group: wider ones run out of registers beside the unrolled taps.
_MAX_COLUMNS, _MAX_COLUMNS_OF_ONE_CHANNEL = 8, 12


#: Cycles of copying a vector; how much longer it takes where the channels' other vectors were read before and are gone
#: from L2, and the size of what was read, in L2, from which on they are. Fitted to depthwise layers.
_COPY, _READ_AGAIN, _HELD_BETWEEN_PASSES = 6.0, 1.6, 2


#: How much longer it takes where filters end in a tail, as vectors then are copied and stored in parts.
_TAIL = 1.4


#: Lanes up to which vectors are not halved: without AVX-512, half a vector takes as long as a whole one.
_MIN_LANES = 8


#: Channels and filters of a group from which on narrow vectors of its filters alone pay.
_MIN_NARROW = 4


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
        narrow = min(spec.group_channels, spec.group_filters) >= _MIN_NARROW
        if narrow or worthwhile_sharing(spec, traits) is not None:
            return None
    return replace(variant, stream=streaming.outgrows_caches(spec, traits, variant.lanes)), decisions


def _cheapest(spec: CanonicalSpec, traits: CpuTraits) -> tuple[GroupedVariant, dict[str, int]] | None:
    """The variant and the decisions of least cost; None where a group fills whole vectors."""
    if spec.groups == 1 or spec.group_filters >= traits.lanes(spec.accumulator):
        return None
    lanes = _whole_vectors(spec, fitting_lanes(traits, spec.accumulator, spec.filters))
    width = spec.out_size[2]
    most = _MAX_COLUMNS_OF_ONE_CHANNEL if spec.group_channels == 1 else _MAX_COLUMNS
    most = most if traits.registers >= 32 else most // 2
    # columns behind the row's end are wasted; the taps' weights are loaded once a tile
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
    overhanging = _TAIL if s.filters % variant.lanes else 1.0

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
    """`lanes`, or half of them where only those divide the filters: tails are copied in parts."""
    return lanes // 2 if s.filters % lanes and s.filters % (lanes // 2) == 0 and lanes > _MIN_LANES else lanes


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
    return [*different, *streaming.streaming(spec, first, first.lanes)]
