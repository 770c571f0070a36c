"""Which variants of the grouped convolution there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost; each also as `..._tail` where filters end in a tail, as vectors then are
copied and stored in parts:

    product     multiply-adds of vectors
    copy        vectors of input that a task copies
    copy_again  the same, of tasks so large that they are gone from L2 when the channels' next vectors are read
    store       vectors of output
    memory      bytes of input and output
    task        tasks
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
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved
from tvm_conv3d.schedules.llvm.costs.table import costs_of, total
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    TASKS_PER_THREAD,
    busiest_share,
    fitting_lanes,
    tasks,
    tiles_of,
)
from tvm_conv3d.spec import Triple
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
    again = copied * s.channels * np.dtype(s.accumulator).itemsize > _HELD_BETWEEN_PASSES * traits.l2
    tail = "_tail" if s.filters % variant.lanes else ""
    return {
        f"product{tail}": of_core * positions * math.prod(s.kernel) * s.group_channels * share,
        f"copy_again{tail}" if again else f"copy{tail}": of_core * _copies(s, variant) * copied,
        f"store{tail}": of_core * positions,
        "memory": bytes_moved(s) / traits.cores,
        "task": of_core,
    }


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
