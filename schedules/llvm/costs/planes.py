"""Which variants of the convolution on planes there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost:

    step       cycles that register tiles take of the vector units and load ports, tap by tap
    copy       elements that are copied into planes, row by row
    strided    the same where columns are strided, whose phases are copied apart
    transpose  the same from channels_last
    made       the same in registers, tile by tile
    store      vectors of output
    l3         bytes of input and output, where L3 holds both
    memory     cycles for them where it does not, beyond those of the products that are done meanwhile
    stream     the same of planes that are made in registers, as all of input and output is read and stored in order
    task       tasks
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.planes import PlanesVariant, applies, copied_steps, needs_gather
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs import streaming
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved, moved
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    L1_PERIOD,
    LATENCY,
    TASKS_PER_THREAD,
    busiest_share,
    live_share,
    tiles_of,
    unevenness,
)
from tvm_conv3d.spec import CHANNELS_FIRST, Triple
from tvm_conv3d.target.cpu import CpuTraits

#: Cycles of loading a vector of a row, as most of them cross a cache line.
_LOAD = 1.6


#: Share of the registers that the sums of several rows may take: LLVM loads the rows well ahead.
_SUMS = 0.5


#: Vectors of a row and rows of a tile, at most.
_MAX_VECTORS, _MAX_ROWS = 4, 8


#: Channels a task may read as they lie, but for pointwise layers: rows of more planes, which often share a set, fall
#: out of L1.
_MAX_PLANES = 64


#: Pointwise: input and output, as a share of the last cache, from which on memory decides; filters of a group from
#: which on, and channels above which, the sums have their say, too, and a task copies its part of the planes.
_SHARE_OF_L3, _MANY_SUMS = 0.6, 128


#: Filters for each channel from which on stores decide: plane by plane, not interleaved over many planes.
_MANY_FILTERS = 4


#: Share of the vectors' lanes that rows have to fill, and of layers in groups, for which other algorithms copy more.
_MIN_FILLED, _MIN_FILLED_IN_GROUPS = 0.8, 0.65


#: In channels_last: filters times padded columns for each column, at most. Vectors of four filters, with which planes
#: compete, compute an output position in half a cycle whatever the number of filters.
_MAX_PADDED = 6


#: Filters and channels up to which planes are made although each element of them is used for one tap.
_MAX_POINTWISE = (2, 16)


#: Register tiles that compete while tuning.
_MAX_TILES = 8


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[PlanesVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where rows fill too few lanes."""
    if not _pays(spec, traits):
        return None
    variant = _default_variant(spec, traits)
    depth, row_tiles, column_tiles = _best_box(spec, traits, variant)
    few = spec.channels if _in_registers(spec) else 1
    return variant, {"depth": depth, "rows": row_tiles, "columns": column_tiles, "unroll": few}


def _default_variant(s: CanonicalSpec, traits: CpuTraits) -> PlanesVariant:
    if _is_pointwise(s, traits):
        return _of_pointwise(s, traits)
    variant = _tiles(s, traits, 1)[0]
    if _in_registers(s):
        # memory decides: nothing but the planes of one vector in registers, results past caches that inputs have filled
        variant = replace(variant, lanes=traits.lanes(s.accumulator), vectors=1)
        variant = replace(variant, stream=streaming.passes_through(s, traits, variant.lanes, variant.lanes))
    return replace(variant, gather=needs_gather(s, variant) or s.group_channels > _MAX_PLANES)


def _is_pointwise(s: CanonicalSpec, traits: CpuTraits) -> bool:
    """Whether planes of one long row of whole vectors lie there, and each of their elements is used for one tap."""
    planes_lie = s.data_format == CHANNELS_FIRST and s.group_channels > 1
    return planes_lie and all(s.pointwise) and s.size[2] % traits.lanes(s.accumulator) == 0


def _of_pointwise(s: CanonicalSpec, traits: CpuTraits) -> PlanesVariant:
    """The default of a pointwise layer: by its size, and by how many products each element takes part in."""
    in_caches, copied, past_caches = _ways_of_pointwise(s, traits)
    if bytes_moved(s) < _SHARE_OF_L3 * traits.l3:
        return in_caches
    many = s.group_filters >= _MANY_SUMS or s.group_channels > _MANY_SUMS
    return copied if many else past_caches


def _ways_of_pointwise(s: CanonicalSpec, traits: CpuTraits) -> list[PlanesVariant]:
    """One vector of many filters, each element being loaded for all of them; the same on a task's copy of its part of
    the planes; long rows of few filters, stored past the caches."""
    lanes = traits.lanes(s.accumulator)
    shared = s.size[2] * np.dtype(s.accumulator).itemsize % L1_PERIOD == 0

    def cost(tile: PlanesVariant) -> tuple[float, ...]:
        # planes that share a set of L1 fall out of it from one block of filters to the next
        blocks = -(-s.group_filters // tile.filters) if shared and tile.vectors > 1 else 0
        return blocks, *_cycles(s, traits, tile, 1.0)

    def of_vectors(vectors: int) -> PlanesVariant:
        fitting = [t for t in _candidates(s, traits) if (t.lanes, t.vectors, t.rows) == (lanes, vectors, 1)]
        return min(fitting, key=cost)

    short = of_vectors(1)
    long = of_vectors(max(count for count in range(1, _MAX_VECTORS + 1) if s.size[2] % (count * lanes) == 0))
    long = replace(long, gather=needs_gather(s, long), filters_first=False)
    past_caches = streaming.streaming(s, long, lanes, lanes * long.vectors) or [long]
    return [replace(short, gather=needs_gather(s, short)), replace(short, filters_first=True), *past_caches]


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: PlanesVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does."""
    box = (decisions["depth"], decisions["rows"], decisions["columns"])
    count = _tasks(spec, variant, box)
    share = busiest_share(count, traits)
    taps = spec.kernel[0] * live_share(spec, 0) * spec.kernel[2]
    planes = spec.batch * spec.out_size[0] * spec.channels * taps
    copied = count * _copied(spec, variant, box) if variant.gather else 0
    made = _in_registers(spec)
    step = share * planes * _cycles(spec, traits, variant, live_share(spec, 1))[0]
    done = {
        "step": step,
        _copy(spec, made): share * copied,
        "store": share * math.prod(spec.output_shape) / variant.lanes,
        "task": share * count,
    }
    bytes_of = moved(bytes_moved(spec), traits, step)
    return {**done, **({"stream": sum(bytes_of.values())} if made else bytes_of)}


def _copy(s: CanonicalSpec, made: bool) -> str:
    """What copying an element counts as."""
    if s.data_format != CHANNELS_FIRST:
        return "made" if made else "transpose"
    return "copy" if s.strides[2] == 1 else "strided"


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[PlanesVariant]:
    """The variants that compete while tuning, the cheapest first; none of many filters in channels_last."""
    if not applies(spec) or spec.empty:
        return []
    first = _default_variant(spec, traits)
    found = [first, replace(first, filters_first=not first.filters_first)]
    if _is_pointwise(spec, traits):
        found += _ways_of_pointwise(spec, traits)
    if _in_rows(spec):
        found += streaming.streaming(spec, first, first.lanes, first.lanes * first.vectors)
    for tile in _tiles(spec, traits, _MAX_TILES):
        found.append(tile)
        if not needs_gather(spec, tile):
            found.append(replace(tile, gather=False))
    return list(dict.fromkeys(found))


def _in_rows(s: CanonicalSpec) -> bool:
    """Whether the output's columns of a filter lie side by side."""
    return s.data_format == CHANNELS_FIRST or s.filters == 1


def _in_registers(s: CanonicalSpec) -> bool:
    """Whether planes are made in registers, tile by tile, as each element is used for one tap."""
    return s.data_format != CHANNELS_FIRST and math.prod(s.kernel) == 1 and s.channels <= _MAX_POINTWISE[1]


def _pays(spec: CanonicalSpec, traits: CpuTraits) -> bool:
    """Whether rows fill enough of the vectors, and planes that have to be made are used often enough."""
    if not applies(spec) or spec.empty:
        return False
    width, lanes = spec.out_size[2], traits.lanes(spec.accumulator)
    padded = lanes * -(-width // lanes)
    if spec.data_format == CHANNELS_FIRST:
        return width >= (_MIN_FILLED if spec.groups == 1 else _MIN_FILLED_IN_GROUPS) * padded
    few, short = _MAX_POINTWISE
    reused = math.prod(spec.kernel) > 1 or (spec.filters <= few and spec.channels <= short)
    return reused and spec.filters * padded <= _MAX_PADDED * width


def _tiles(s: CanonicalSpec, traits: CpuTraits, count: int) -> list[PlanesVariant]:
    """The cheapest register tiles, the best first."""
    seen = live_share(s, 1)
    return heapq.nsmallest(count, _candidates(s, traits), key=lambda tile: _cycles(s, traits, tile, seen))


def _candidates(s: CanonicalSpec, traits: CpuTraits) -> Iterator[PlanesVariant]:
    whole, (_, height, width) = traits.lanes(s.accumulator), s.out_size
    # of many filters, a loaded vector serves all that the registers have room for
    several_rows = range(2, min(_MAX_ROWS, height) + 1) if s.kernel[1] > 1 and s.group_filters == 1 else ()
    filters_first = s.group_filters >= _MANY_FILTERS * s.group_channels
    for lanes, most in ((whole, _MAX_VECTORS), (whole // 2, 2 * _MAX_VECTORS if whole > 8 else 0)):
        for vectors in range(1, min(most, -(-width // lanes)) + 1):
            for filters in range(1, min(s.group_filters, traits.registers // vectors) + 1):
                for height_of_tile in (1, *several_rows):
                    if filters * height_of_tile * vectors + vectors + 1 <= traits.registers:
                        yield PlanesVariant(lanes, vectors, height_of_tile, filters, filters_first=filters_first)


def _cycles(s: CanonicalSpec, traits: CpuTraits, tile: PlanesVariant, seen: float) -> tuple[float, int, int, int]:
    """Cycles for each channel, tap of depth and tap of width; of equals, whole vectors and large tiles come first."""
    _, height, width = s.out_size
    taps, sums = s.kernel[1], tile.filters * tile.rows * tile.vectors
    whole = tile.lanes == traits.lanes(s.accumulator)
    # two halves of a vector take as long as a whole one
    share = 1.0 if whole else 0.5
    if tile.rows == 1:
        # a CPU that splits vectors loads a whole one in two steps
        loads = (_LOAD * tile.vectors * (2 if whole and traits.half_width_vector_units else 1) + tile.filters) / 2
        step = taps * seen * max(share * max(sums, LATENCY), loads)
    else:
        loaded = min((tile.rows - 1) * s.strides[1] + taps, tile.rows * taps)
        spilled = max(0, sums - int(_SUMS * traits.registers))
        step = share * (max(taps * sums, _LOAD * loaded * tile.vectors + taps * tile.filters) + 2 * taps * spilled)
    tiles = -(-s.group_filters // tile.filters) * -(-height // tile.rows) * -(-width // (tile.vectors * tile.lanes))
    # plane by plane, long rows are stored best; else many filters share what is loaded
    return tiles * step, -tile.lanes, -sums, -tile.vectors if tile.filters_first else tile.vectors


def _tasks(s: CanonicalSpec, variant: PlanesVariant, box: Triple) -> int:
    """Number of tasks of `box`: depth, row tiles and column tiles."""
    whole = tiles_of(s, (variant.rows, variant.vectors * variant.lanes))
    return s.batch * s.groups * math.prod(size // inner for size, inner in zip(whole, box, strict=True))


def _copied(s: CanonicalSpec, variant: PlanesVariant, box: Triple) -> int:
    """Elements that a task of `box` copies."""
    cells = (box[0], box[1] * variant.rows, box[2] * variant.vectors * variant.lanes)
    return s.group_channels * math.prod(
        (cell - 1) * stride + window for cell, stride, window in zip(cells, copied_steps(s), s.window, strict=True)
    )


def _best_box(s: CanonicalSpec, traits: CpuTraits, variant: PlanesVariant) -> Triple:
    """Depth, row tiles and column tiles of a task.

    The task is that which leaves enough of them, no thread idle at the end, and copies least, in half of L2; where none
    fits, in a core's part of L3, or in as few times that as can be.
    """
    item = np.dtype(s.accumulator).itemsize

    def cost(box: Triple) -> tuple[bool, int, bool, int, int, int, int]:
        count, copied = _tasks(s, variant, box), _copied(s, variant, box)
        too_few = count < TASKS_PER_THREAD * traits.cores
        in_cache = copied * item // (traits.l3 // traits.cores), copied * item > traits.l2 // 2
        return too_few, *in_cache, unevenness(count, traits), copied * count, -box[2], -box[1]

    depths, row_tiles, column_tiles = map(divisors, tiles_of(s, (variant.rows, variant.vectors * variant.lanes)))
    return min(itertools.product(depths, row_tiles, column_tiles), key=cost)
