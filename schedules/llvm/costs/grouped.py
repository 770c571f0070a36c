"""Which variants of the grouped convolution there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost:

    product      multiply-adds of vectors
    shuffled     the same of vectors whose lanes are exchanged in registers
    repeated     the same of vectors that are made of repeated channels
    copy         vectors of input that a task copies
    copy_again   the same, of tasks so large that they are gone from L2 when the channels' next vectors are read
    copy_tail    vectors that are copied in parts, as filters end in a tail
    repeat       vectors that are made of repeated channels
    store        vectors of output
    store_tail   those that are stored in parts
    l3           bytes of input and output, where L3 holds both
    memory       cycles for them where it does not, beyond those of the products that are done meanwhile
    task         tasks

In channels_first vectors are transposed as they are copied and stored:

    transpose    vectors of input and output
    repeat_rows  vectors that are made of repeated channels
    row          rows that are started: each of a channel lies in a page of its own
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.grouped import GroupedVariant, shuffles
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import window_extents
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs import streaming
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved, moved
from tvm_conv3d.schedules.llvm.costs.table import costs_of, total
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    TASKS_PER_THREAD,
    busiest_share,
    fitting_lanes,
    tasks,
    tiles_of,
)
from tvm_conv3d.spec import CHANNELS_LAST, Triple
from tvm_conv3d.target.cpu import CpuTraits

#: Columns of a tile, and of one of a single channel a group: wider ones run out of registers beside the unrolled taps.
_MAX_COLUMNS, _MAX_COLUMNS_OF_ONE_CHANNEL = 8, 12


#: Size of what a task reads, in L2, from which on it is gone when the channels' next vectors are read.
_HELD_BETWEEN_PASSES = 2


#: Lanes up to which vectors are not halved: without AVX-512, half a vector takes as long as a whole one.
_MIN_LANES = 8


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[GroupedVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where a group fills whole vectors."""
    found = _cheapest(spec, traits)
    if found is None:
        return None
    variant, decisions = found
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
    depth, rows, column_tiles = _best_box(spec, traits, variant)
    few_tasks = tasks(spec, (1, columns), (depth, rows, column_tiles)) < TASKS_PER_THREAD * traits.cores
    variant = replace(variant, parallel_blocks=few_tasks and spec.filters > lanes)
    return variant, {"depth": depth, "rows": rows, "columns": column_tiles}


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: GroupedVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does."""
    return _amounts(spec, traits, variant, (decisions["depth"], decisions["rows"], decisions["columns"]))


def _amounts(s: CanonicalSpec, traits: CpuTraits, variant: GroupedVariant, box: Triple) -> dict[str, float]:
    tile = (variant.rows, variant.columns)
    count, blocks = tasks(s, tile, box), -(-s.filters // variant.lanes)
    # tasks of all filters, or of a block of them
    of_core = blocks * count * busiest_share(count * (blocks if variant.parallel_blocks else 1), traits)
    # two halves take as long as a whole vector, or less where loads decide
    share = variant.lanes / traits.lanes(s.accumulator)
    positions = math.prod(box) * math.prod(tile)
    copied = _copied_positions(s, tile, box)
    product = of_core * positions * math.prod(s.kernel) * s.group_channels * share
    made = of_core * copied * _copies(s, variant)
    repeated = s.group_channels > 1 and not variant.shuffled
    done = {
        "shuffled" if variant.shuffled else "repeated" if repeated else "product": product,
        **moved(bytes_moved(s), traits, product),
        "task": of_core,
    }
    tail = s.filters % variant.lanes != 0
    if s.data_format != CHANNELS_LAST:
        stored = of_core * positions
        done["row"] = (stored + of_core * copied) * variant.lanes / (box[2] * variant.columns)
        return {**done, "repeat_rows": made, "transpose": stored} if repeated else {**done, "transpose": stored + made}
    again = copied * s.channels * np.dtype(s.accumulator).itemsize > _HELD_BETWEEN_PASSES * traits.l2
    done["repeat" if repeated else "copy_tail" if tail else "copy_again" if again else "copy"] = made
    done["store_tail" if tail else "store"] = of_core * positions
    return done


def _copied_positions(s: CanonicalSpec, tile: tuple[int, int], box: Triple) -> int:
    """Input positions that a task of `box` copies."""
    return math.prod(window_extents(s, (box[0], box[1] * tile[0], box[2] * tile[1])))


def _copies(s: CanonicalSpec, variant: GroupedVariant) -> int:
    """Vectors that are made of one of input."""
    return 1 if variant.shuffled else s.group_channels


def _best_box(s: CanonicalSpec, traits: CpuTraits, variant: GroupedVariant) -> Triple:
    """The cheapest task: depth, rows and tiles of columns."""
    tile, costs = (variant.rows, variant.columns), costs_of(traits, "grouped")
    item = np.dtype(s.accumulator).itemsize

    def cost(box: Triple) -> tuple[bool, bool, float, int, int]:
        too_few = tasks(s, tile, box) < TASKS_PER_THREAD * traits.cores
        private = _copied_positions(s, tile, box) * _copies(s, variant) * variant.lanes * item
        return too_few, private > traits.l2 // 2, total(costs, _amounts(s, traits, variant, box)), -box[2], -box[1]

    depth_boxes, row_boxes, column_boxes = map(divisors, tiles_of(s, tile))
    return min(itertools.product(depth_boxes, row_boxes, column_boxes), key=cost)


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
