"""Which variants of the gradient of weights there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost:

    product  cycles that steps over the positions take of the vector units
    row      rows of positions that register tiles go along
    sum      vectors of sums that are added to those of the boxes before, from the second cache
    sum_l3   the same where a task's sums overfill that
    copy     vectors of input and gradient that are copied
    element  elements that are copied one by one, as channels fill no vectors
    store    vectors of sums that are added up and stored
    l3       bytes of input, gradient and weights, where L3 holds all
    memory   cycles for them where it does not, beyond those of the products that are done meanwhile
    task     tasks
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.weight_gradient import (
    WeightGradientVariant,
    boxes_of,
    needs_copy_of_gradient,
    needs_copy_of_input,
    tiles_of,
    together,
)
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import PART, window_extents
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs import table
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved, moved
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    VECTORS,
    busiest_share,
    step_cycles,
    useful_lanes,
)
from tvm_conv3d.target.cpu import CpuTraits

#: Cycles by which a step is longer than its multiply-adds, and by each of its loads: of equal ones, square tiles are
#: faster. Fitted to eight layers.
_STEP, _LOAD = 1.0, 0.15

#: How much longer a step is counted where tiles overhang the channels, which are copied one by one then.
_UNEVEN = 1.04

#: Channels of a group up to which taps of a row, or of a plane, share a tile: with more, a tile of one tap has as few
#: loads, and reads whole lines.
_FEW_OF_ROW, _FEW_OF_PLANE = 16, 2

#: Chunks that a core gets, at most; and all in all where long sums are cut, as one expression adds them.
_CHUNKS_PER_CORE, _MOST_CHUNKS = 4, 1024

#: Register tiles that compete while tuning, and boxes of each.
_MAX_TILES, _MAX_BOXES = 4, 3


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[WeightGradientVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    (tile,) = _good_tiles(spec, traits, 1)
    return _divided(spec, traits, _good_boxes(spec, traits, tile, 1)[0])


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[WeightGradientVariant]:
    """The variants that compete while tuning, the default first: tiles and boxes of low cost, and other chunks."""
    found = []
    for tile in _good_tiles(spec, traits, _MAX_TILES):
        for boxed in _good_boxes(spec, traits, tile, _MAX_BOXES):
            variant, _ = _divided(spec, traits, boxed)
            found += [variant, replace(variant, chunks=1)]
    return list(dict.fromkeys(found))


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: WeightGradientVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does."""
    v, item = variant, np.dtype(spec.accumulator).itemsize
    channels, filters = tiles_of(spec, v)
    own = decisions["channels"], decisions["filters"]
    boxes = spec.batch * math.prod(boxes_of(spec, v.box))
    parts = channels // own[0] * (filters // own[1])
    sets, depths = together(spec, v)[0], 1 if v.repeated else spec.kernel[0]
    count = v.chunks * sets * depths * parts
    of_core = count * busiest_share(count, traits)
    # what a task does, box by box
    steps = of_core * boxes / v.chunks
    tiles = steps * _planes(spec, v) * math.prod(own)
    sums = _rows(spec, v) * v.vectors
    product = tiles * math.prod(v.box) * _step(spec, traits, v)
    own_bytes = _planes(spec, v) * math.prod(own) * sums * v.lanes * item
    weights = math.prod(spec.kernel) * sets * channels * filters * v.channels * v.vectors
    read = bytes_moved(spec) + (1 + v.chunks) * weights * v.lanes * item
    done = {
        "product": product,
        "row": tiles * math.prod(v.box[:2]),
        "sum_l3" if own_bytes > traits.l2 // 2 else "sum": tiles * sums,
        "store": weights * (1 + v.chunks) / traits.cores,
        **moved(read, traits, product),
        "task": of_core,
    }
    for name, copied in _copied(spec, v, own).items():
        done[name] = done.get(name, 0.0) + steps * copied
    return done


def _copied(spec: CanonicalSpec, v: WeightGradientVariant, own: tuple[int, int]) -> dict[str, float]:
    """What a task of so many tiles along channels and filters copies of a box."""
    found: dict[str, float] = {}
    if v.copy_input:
        positions, elements = math.prod(_read_extents(spec, v)), own[0] * v.channels
        whole = elements % v.lanes == 0
        if v.repeated:
            whole, elements = spec.group_filters == 1, elements * own[1] * v.vectors * v.lanes
        found["copy" if whole else "element"] = positions * elements / (v.lanes if whole else 1)
    if v.copy_gradient:
        found["copy"] = found.get("copy", 0.0) + math.prod(v.box) * own[1] * v.vectors
    return found


def _read_extents(spec: CanonicalSpec, v: WeightGradientVariant) -> list[int]:
    """Extents of the padded input that a task's taps read of a box."""
    depth, height, width = window_extents(spec, v.box)
    return [depth if v.repeated else (v.box[0] - 1) * spec.strides[0] + 1, height, width]


def _rows(spec: CanonicalSpec, v: WeightGradientVariant) -> int:
    """Rows of a register tile: channels, times the taps in it."""
    _, height, width = spec.kernel
    return v.channels * {"one": 1, "row": width, "plane": height * width}[v.taps]


def _planes(spec: CanonicalSpec, v: WeightGradientVariant) -> int:
    """Tiles for the taps of a task."""
    depth, height, width = spec.kernel
    return (depth if v.repeated else 1) * {"one": height * width, "row": height, "plane": 1}[v.taps]


def _step(spec: CanonicalSpec, traits: CpuTraits, v: WeightGradientVariant) -> float:
    """Cycles of the vector units for one position of a tile."""
    share = v.lanes / traits.lanes(spec.accumulator) if traits.half_width_vector_units else 1.0
    if v.repeated:
        # each multiply-add has an input vector of its own to load
        return max(step_cycles(_rows(spec, v), v.vectors, share), share * (_rows(spec, v) + 1) * v.vectors)
    return step_cycles(_rows(spec, v), v.vectors, share)


def _good_tiles(spec: CanonicalSpec, traits: CpuTraits, count: int) -> list[WeightGradientVariant]:
    """The register tiles that take the fewest cycles for a position, of boxes of one."""
    _, height, width = spec.kernel
    taps = ["one"]
    if width > 1 and spec.group_channels <= _FEW_OF_ROW:
        taps.append("row")
    if height > 1 and spec.group_channels <= _FEW_OF_PLANE:
        taps.append("plane")
    found = []
    shared = spec.groups > 1 and spec.group_filters < traits.lanes(spec.accumulator)
    lanes = [(lane, False) for lane in useful_lanes(traits, spec.accumulator, spec.group_filters)]
    lanes += [(lane, True) for lane in useful_lanes(traits, spec.accumulator, spec.filters) if shared]
    for kind, vectors, (lane, repeated), channels in itertools.product(
        taps, VECTORS, lanes, range(1, traits.registers)
    ):
        variant = WeightGradientVariant(lane, vectors, channels, kind, (1, 1, 1), repeated=repeated)
        sums = _rows(spec, variant) * vectors
        if channels <= spec.group_channels and sums + vectors < traits.registers:
            found.append(variant)

    def cost(v: WeightGradientVariant) -> tuple[float, int]:
        rows, tiles = _rows(spec, v), _planes(spec, v) * math.prod(tiles_of(spec, v)) * together(spec, v)[0]
        tiles *= 1 if v.repeated else spec.kernel[0]
        uneven = _UNEVEN if spec.group_channels % v.channels else 1.0
        return uneven * tiles * (_STEP + _step(spec, traits, v) + _LOAD * (rows + v.vectors)), -rows * v.vectors

    return heapq.nsmallest(count, found, key=cost)


def _good_boxes(
    spec: CanonicalSpec, traits: CpuTraits, tile: WeightGradientVariant, count: int
) -> list[WeightGradientVariant]:
    """A register tile with the boxes that cost the least for a position, of those that fit the second cache."""
    costs, item = table.costs_of(traits, "weight_gradient"), np.dtype(spec.accumulator).itemsize
    whole = tiles_of(spec, tile)
    tiles, sums = _planes(spec, tile) * math.prod(whole), _rows(spec, tile) * tile.vectors

    # tasks of repeated channels have some filters
    least = (whole[0], 1) if tile.repeated else whole

    def held(v: WeightGradientVariant) -> int:
        filters = least[1] * tile.vectors * tile.lanes
        read = math.prod(_read_extents(spec, v)) * least[0] * tile.channels * (filters if tile.repeated else 1)
        return item * (read + math.prod(v.box) * filters)

    def cost(variant: WeightGradientVariant) -> tuple[bool, float]:
        cells = math.prod(variant.box)
        once = tiles * (costs["sum"] * sums + costs["row"] * math.prod(variant.box[:2]))
        once += table.total(costs, _copied(spec, variant, whole))
        return cells > PART or held(variant) > traits.l2 // 2, once / cells

    depth, height, width = map(divisors, spec.out_size)
    found = [_reading(spec, replace(tile, box=box)) for box in itertools.product(depth, height, width)]
    return heapq.nsmallest(count, found, key=cost)


def _reading(spec: CanonicalSpec, variant: WeightGradientVariant) -> WeightGradientVariant:
    """The variant with the copies that it needs."""
    needed = needs_copy_of_input(spec, variant), needs_copy_of_gradient(spec, variant)
    return replace(variant, copy_input=needed[0], copy_gradient=needed[1])


def _divided(
    spec: CanonicalSpec, traits: CpuTraits, variant: WeightGradientVariant
) -> tuple[WeightGradientVariant, dict[str, int]]:
    """The cheapest tasks: chunks, and register tiles along channels and filters."""
    costs = table.costs_of(traits, "weight_gradient")
    boxes = spec.batch * math.prod(boxes_of(spec, variant.box))
    most = _CHUNKS_PER_CORE * traits.cores
    # long sums are made in parts
    chunks = [n for n in divisors(boxes) if n <= most or (n <= _MOST_CHUNKS and boxes // n >= PART)]
    channels, filters = map(divisors, tiles_of(spec, variant))

    def cost(chunks: int, channels: int, filters: int) -> tuple[bool, float]:
        done = amounts(spec, traits, replace(variant, chunks=chunks), {"channels": channels, "filters": filters})
        return boxes // chunks > PART and chunks < boxes, table.total(costs, done)

    best = min(itertools.product(chunks, channels, filters), key=lambda each: cost(*each))
    return replace(variant, chunks=best[0]), {"channels": best[1], "filters": best[2]}
