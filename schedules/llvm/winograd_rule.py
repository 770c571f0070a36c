"""Which Winograd variant where nothing was tuned, and whether one at all: a small cost model.

Cycles of one task on one core, the sum of

    product      frequencies x tiles x channels x filters / lanes, by the register tile's cost (:mod:`tile_rule`)
    transforms   TRANSFORM_STEP for each vector times entry of a matrix, forth and back
    intermediates  transformed input and products, written and read once, at the bandwidth of the cache that holds them
    weights      all transformed weights, once a task, at the bandwidth of the cache that holds them

times the tasks that a core gets, and the input and the output once from memory. The constants were fitted to 44
measured points on 17 layers (AVX-512, 8 to 512 channels), most of which it meets within a fifth. The direct convolution
is priced alike; Winograd is taken where it is clearly cheaper and the expected rounding within :data:`ERROR_LIMIT`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.compute.cook_toom import MOST_TAPS_AND_OUTPUTS, transforms
from tvm_conv3d.compute.winograd import (
    DILATED,
    FOLDED,
    PLAIN,
    STRIDED,
    Axes,
    WinogradVariant,
    axes_of,
    error_bound,
    groups_of_part,
)
from tvm_conv3d.schedules.llvm.tile_rule import WIDTH_PENALTY, best_tile, seen_share
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec, Triple
from tvm_conv3d.targets import CpuTraits

#: Largest relative error (2-norm) that a default plan may be expected to have.
ERROR_LIMIT = 1e-5

#: Largest output tile along an axis.
_LARGEST_TILE = 6

#: Cycles of one vector step of a transform, its loads and stores included.
TRANSFORM_STEP = 1.3

#: Bytes a cycle and core that a task's own data move at, from L2 and from the shared L3.
_OWN_FROM_L2, _OWN_FROM_L3 = 32.0, 8.0

#: Bytes a cycle and core that the weights stream at beside the products, from L3 and from memory.
_WEIGHTS_FROM_L3, _WEIGHTS_FROM_MEMORY = 50.0, 10.0

#: Bytes a cycle and core of input and output.
_FROM_MEMORY = 4.0

#: Winograd must be cheaper than direct by this factor, as both are estimates.
_ADVANTAGE = 0.78

#: Cells that a cache line and the start of its copy cost as much as.
_LINE = 24.0

#: Cycles of a task besides its work.
_TASK = 3000.0

#: Variants that are priced with all their blocks; the others only with their products and transforms.
_SHORT_LIST = 6


@dataclass(frozen=True)
class Priced:
    """A variant and its estimated cycles on each core."""

    variant: WinogradVariant
    cycles: float


def priced(spec: Conv3DSpec, traits: CpuTraits) -> list[Priced]:
    """The variants within the error limit, the cheapest first; empty where Winograd does not apply."""
    s = collapse(spec)
    if s.groups != 1 or s.accumulator != "float32" or s.empty or s.filters < traits.lanes(s.accumulator):
        return []
    rough = sorted(_candidates(s, traits), key=lambda candidate: candidate.cycles)[:_SHORT_LIST]
    fine = [_price(s, traits, variant) for found in rough for variant in _blocked(s, traits, found.variant)]
    return sorted(fine, key=lambda candidate: candidate.cycles)


def direct_cycles(spec: Conv3DSpec, traits: CpuTraits) -> float:
    """Cycles of the direct convolution on each core, by the same measure."""
    s = collapse(spec)
    tile = best_tile(s, traits, s.group_filters)
    depth, height, width = s.out_size
    cells = depth * -(-height // tile.rows) * tile.rows * -(-width // tile.columns) * tile.columns
    filters = -(-s.group_filters // (tile.vectors * tile.lanes)) * tile.vectors
    seen = seen_share(s, 0) * (seen_share(s, 1) if tile.rows == 1 else 1)
    steps = s.batch * cells * filters * math.prod(s.kernel) * s.group_channels * s.groups
    return steps * seen * WIDTH_PENALTY[tile.vectors] / traits.cores + _memory_cycles(s, traits)


def worthwhile(spec: Conv3DSpec, traits: CpuTraits) -> WinogradVariant | None:
    """The cheapest variant, or None where the direct convolution is as good."""
    found = priced(spec, traits)
    if found and found[0].cycles < _ADVANTAGE * direct_cycles(spec, traits):
        return found[0].variant
    return None


def _modes(s: Conv3DSpec) -> Iterator[str]:
    """Combinations of the modes that suit each axis."""
    options = []
    for kernel, stride, dilation, out in zip(s.kernel, s.strides, s.dilation, s.out_size, strict=True):
        if kernel == 1 and stride > 1:
            options.append(FOLDED)
        elif dilation > 1:
            options.append((DILATED if stride == 1 and out % dilation == 0 else "") + FOLDED)
        elif stride > 1:
            options.append(STRIDED + FOLDED)
        elif kernel == 1:
            options.append(PLAIN)
        else:
            options.append(PLAIN + FOLDED if out <= 2 else PLAIN)
    return ("".join(combination) for combination in itertools.product(*options))


def _candidates(s: Conv3DSpec, traits: CpuTraits) -> Iterator[Priced]:
    """All modes and tiles within the error limit, in tasks of one row of tiles."""
    lanes = traits.lanes(s.accumulator)
    for modes in _modes(s):
        axes = axes_of(s, modes)
        part = _part_size(s, axes)
        sizes = [
            [1] if taps == 1 else range(2, 1 + min(_LARGEST_TILE, max(2, out), MOST_TAPS_AND_OUTPUTS - taps))
            for taps, out in zip(axes.taps, part, strict=True)
        ]
        for md, mh, mw in itertools.product(*sizes):
            tile = (md, mh, mw)
            if max(m + t for m, t in zip(tile, axes.taps, strict=True)) == 2:
                continue
            vectors = _vectors(s, lanes)
            width = -(-part[2] // tile[2])
            variant = WinogradVariant(modes, tile, (1, 1, min(width, 14)), lanes, vectors, 1)
            if error_bound(replace(s, dtype=s.accumulator), variant) <= ERROR_LIMIT:
                yield _price(s, traits, _with_columns(variant, traits))


def _part_size(s: Conv3DSpec, axes: Axes) -> Triple:
    """Output cells of one part along each axis."""
    depth, height, width = (o // parts for o, parts in zip(s.out_size, axes.parts, strict=True))
    return depth, height, width


def _vectors(s: Conv3DSpec, lanes: int) -> int:
    """Vectors of filters in the product's tile: few padded filters first, then two."""

    def cost(vectors: int) -> tuple[float, int]:
        return -(-s.filters // (vectors * lanes)) * vectors * WIDTH_PENALTY[vectors], abs(vectors - 2)

    return min(WIDTH_PENALTY, key=cost)


def _with_columns(variant: WinogradVariant, traits: CpuTraits) -> WinogradVariant:
    """The widest register tile that divides the tiles of a task."""
    tiles = math.prod(variant.block)
    most = max(1, (traits.registers - 1 - variant.vectors) // variant.vectors)
    columns = max(c for c in range(1, most + 1) if tiles % c == 0)
    return replace(variant, columns=columns)


def _blocked(s: Conv3DSpec, traits: CpuTraits, variant: WinogradVariant) -> Iterator[WinogradVariant]:
    """The variant with all sensible sizes of tasks."""
    part = _part_size(s, axes_of(s, variant.modes))
    tiles = [-(-o // m) for o, m in zip(part, variant.tile, strict=True)]
    sizes = []
    for count, most_parts in zip(tiles, (4, 8, 8), strict=True):
        parts = range(1, min(most_parts, count) + 1)
        sizes.append(sorted({-(-count // p) for p in parts} | {min(count, size) for size in (1, 2, 4, 7, 8, 14, 16)}))
    for bd, bh, bw in itertools.product(*sizes):
        block = (bd, bh, bw)
        if math.prod(block) <= 64:
            yield _with_columns(replace(variant, block=block), traits)


def _price(s: Conv3DSpec, traits: CpuTraits, variant: WinogradVariant) -> Priced:
    axes = axes_of(s, variant.modes)
    lanes, tiles = variant.lanes, math.prod(variant.block)
    alphas = [m + t - 1 for m, t in zip(variant.tile, axes.taps, strict=True)]
    frequencies = math.prod(alphas)
    width = variant.vectors * lanes
    filters = -(-s.filters // width) * width
    channels = -(-axes.channels // lanes) * lanes
    tasks = s.batch * math.prod(groups_of_part(s, variant)) * math.prod(axes.parts)

    cells = variant.columns * variant.vectors
    step = max(cells, 8, (variant.columns + variant.vectors) / 2) * WIDTH_PENALTY[variant.vectors] / variant.columns
    product = frequencies * tiles * axes.channels * (filters // width) * step
    transform = _transform_steps(variant, axes.taps, channels // lanes, filters // lanes)
    intermediates = 4.0 * frequencies * tiles * (channels + filters)
    weights = 4.0 * frequencies * axes.channels * filters
    traffic = 2 * intermediates / (_OWN_FROM_L2 if intermediates <= traits.l2 else _OWN_FROM_L3)
    if weights > traits.l2 / 2:
        traffic += weights / (_WEIGHTS_FROM_L3 if weights <= traits.l3 else _WEIGHTS_FROM_MEMORY)
    # loops over a row of tiles cost as much to start as half a tile
    transform *= TRANSFORM_STEP * (1 + 0.5 / variant.block[2])
    if s.data_format != CHANNELS_LAST:
        # each row of a channel is read and written by itself, in whole cache lines
        row = variant.block[2] * variant.tile[2]
        cells = math.prod(b * m + t - 1 for b, m, t in zip(variant.block, variant.tile, axes.taps, strict=True))
        transform += (cells * channels + tiles * math.prod(variant.tile) * filters) * (1 + _LINE / row) / lanes
    rounds = -(-tasks // traits.cores)
    return Priced(variant, rounds * (_TASK + product + transform + traffic) + _memory_cycles(s, traits))


def _memory_cycles(s: Conv3DSpec, traits: CpuTraits) -> float:
    cells = math.prod(s.input_shape) + math.prod(s.output_shape)
    return cells * np.dtype(s.accumulator).itemsize / _FROM_MEMORY / traits.cores


def _transform_steps(variant: WinogradVariant, taps: Triple, channel_vectors: int, filter_vectors: int) -> float:
    """Vector multiply-adds of a task's transforms, the gather's copies included."""
    sides = list(zip(variant.block, variant.tile, taps, strict=True))
    steps = 2.0 * math.prod(b * m + t - 1 for b, m, t in sides) * channel_vectors
    # a row of tiles is transformed by itself: rows that two of them share are transformed twice
    cells = [b * (m + t - 1) for b, m, t in sides]
    for axis, (b, m, t) in enumerate(sides):
        if m + t > 2:
            entries = sum(number != 0 for row in transforms(m, t).input for number in row)
            steps += math.prod(cells[:axis] + cells[axis + 1 :]) * b * entries * channel_vectors
    for axis in (0, 1, 2):
        m, t, b = variant.tile[axis], taps[axis], variant.block[axis]
        if m + t > 2:
            entries = sum(number != 0 for row in transforms(m, t).output for number in row)
            rest = math.prod(cells[:axis] + cells[axis + 1 :])
            steps += rest * b * entries * filter_vectors
            cells[axis] = b * m
    return steps + math.prod(cells) * filter_vectors
