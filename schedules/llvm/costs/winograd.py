"""Which Winograd variant where nothing was tuned: the cheapest by :mod:`winograd_cost` of all modes and tiles whose
expected rounding is within :data:`ERROR_LIMIT`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tvm_conv3d.compute.llvm.winograd import WinogradVariant, transposes_sums
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import MAX_TAPS_AND_OUTPUTS
from tvm_conv3d.compute.shared.winograd_axes import DILATED, FOLDED, PLAIN, POLYPHASE, STRIDED, axes_of
from tvm_conv3d.compute.shared.winograd_stages import expected_error
from tvm_conv3d.schedules.llvm.costs import streaming, winograd_cost
from tvm_conv3d.schedules.llvm.costs.priced import Priced
from tvm_conv3d.schedules.llvm.costs.table import costs_of
from tvm_conv3d.schedules.llvm.costs.tile_rule import VECTORS, fitting_lanes, product_of, sharings, useful_lanes
from tvm_conv3d.spec import CHANNELS_LAST, Triple
from tvm_conv3d.target.cpu import CpuTraits

#: Largest relative error (2-norm) that a default plan may be expected to have.
ERROR_LIMIT = 1e-5

#: Filters below which transforming the input costs more than the products that it saves.
_MIN_FILTERS = 4

#: Outputs along an axis up to which its transform hardly saves products.
_SHORT = 2

#: Ways of sharing vectors among groups of few filters that are priced.
_SHARINGS = 3

#: Channels of a group below which products are too short.
_MIN_GROUP_CHANNELS = 3

#: Largest output tile along an axis.
_LARGEST_TILE = 6

#: Tiles of a task along height and width with which variants are compared first.
_FIRST_BLOCKS = ((1, 4), (1, 7), (1, 14), (2, 4))

#: Variants that are priced with all their blocks; the others only with their products and transforms.
_SHORT_LIST = 12

#: Tiles of a task, at most.
_MAX_TILES = 64

#: The part of another variant's packed weights that one has at most which competes with it for its size.
_SMALLER = 0.9

#: Problems whose variants are at hand: a plan is made several times while a network is prepared.
_MAX_KEPT = 128


def priced(spec: CanonicalSpec, traits: CpuTraits) -> list[Priced[WinogradVariant]]:
    """The variants within the error limit, the cheapest first; empty where Winograd does not apply."""
    rough = _rough(spec, traits)[:_SHORT_LIST]
    fine = [cut for found in rough for cut in _cut(spec, traits, found.variant, _blocks(spec, found.variant))]
    return sorted(fine, key=lambda candidate: candidate.cycles)


# asked for by `default`, then by `smaller`
@functools.lru_cache(maxsize=2)
def _rough(spec: CanonicalSpec, traits: CpuTraits) -> list[Priced[WinogradVariant]]:
    """All modes and tiles, each in the best of some tasks, the cheapest first; empty where Winograd does not apply."""
    few = spec.filters < _MIN_FILTERS or (spec.groups > 1 and spec.group_channels < _MIN_GROUP_CHANNELS)
    if spec.accumulator != "float32" or spec.empty or few:
        return []
    return sorted(_candidates(spec, traits), key=lambda candidate: candidate.cycles)


def _modes(s: CanonicalSpec, lanes: int) -> Iterator[str]:
    """Combinations of the modes that suit each axis; taps as channels where a vector holds them all anyway."""
    options = []
    for kernel, stride, dilation, out in zip(s.kernel, s.strides, s.dilation, s.out_size, strict=True):
        if kernel == 1 and stride > 1:
            options.append(FOLDED)
        elif dilation > 1:
            options.append((DILATED if stride == 1 and out > dilation else "") + FOLDED)
        elif stride > 1:
            options.append(STRIDED + FOLDED + (POLYPHASE if kernel > stride else ""))
        elif kernel == 1:
            options.append(PLAIN)
        else:
            beside = s.groups == 1 and s.channels * kernel <= lanes
            options.append(PLAIN + FOLDED if out <= _SHORT or beside else PLAIN)
    return ("".join(combination) for combination in itertools.product(*options))


def _candidates(s: CanonicalSpec, traits: CpuTraits) -> Iterator[Priced[WinogradVariant]]:
    """All modes and tiles within the error limit, each in the best of some tasks."""
    layouts = _layouts(s, traits)
    unrounded = replace(s, dtype=s.accumulator)
    for modes in _modes(s, fitting_lanes(traits, s.accumulator, s.group_filters)):
        axes = axes_of(s, modes)
        part = axes.part_size(s.out_size)
        sizes = [
            [1]
            if taps == 1
            else range(2, 1 + min(_LARGEST_TILE, max(2, out), MAX_TAPS_AND_OUTPUTS - -(-taps // stride)))
            for taps, stride, out in zip(axes.taps, axes.strides, part, strict=True)
        ]
        for md, mh, mw in itertools.product(*sizes):
            tile = (md, mh, mw)
            if axes.cells(tile) == (1, 1, 1):
                continue
            of_axes = zip(tile, axes.taps, axes.strides, strict=True)
            if expected_error(unrounded, axes.channels // s.groups, of_axes) > ERROR_LIMIT:
                continue
            height, width = (-(-part[axis] // tile[axis]) for axis in (1, 2))
            blocks = sorted({(1, min(height, rows), min(width, columns)) for rows, columns in _FIRST_BLOCKS})
            variants = (
                WinogradVariant(modes, tile, (1, 1, 1), lanes, vectors, 1, interleaved=interleaved)
                for interleaved, vectors, lanes in layouts
            )
            yield min((_cut(s, traits, variant, blocks)[0] for variant in variants), key=lambda p: p.cycles)


def _layouts(s: CanonicalSpec, traits: CpuTraits) -> list[tuple[int, int, int]]:
    """Interleaved groups, vectors in the product's tile and lanes: each group by itself, then shared vectors."""

    def best_vectors(lanes: int) -> int:
        def cost(vectors: int) -> tuple[float, int]:
            # few padded filters first, then two vectors
            return -(-s.group_filters // (vectors * lanes)) * vectors * costs[product_of(vectors)], abs(vectors - 2)

        return min(VECTORS, key=cost)

    costs = costs_of(traits, "winograd")

    apart = [(1, best_vectors(lanes), lanes) for lanes in useful_lanes(traits, s.accumulator, s.group_filters)]
    shared = [(sharing.interleaved, sharing.vectors, sharing.lanes) for sharing in sharings(s, traits)[:_SHARINGS]]
    return [*apart, *shared]


def _cut(
    s: CanonicalSpec, traits: CpuTraits, variant: WinogradVariant, blocks: Iterable[Triple]
) -> list[Priced[WinogradVariant]]:
    """The variant in tasks of each of `blocks`, the cheapest first; of equals in their order."""
    tasks, most = winograd_cost.Tasks(s, traits, variant), max(1, (traits.registers - 1) // variant.vectors - 1)
    found = []
    for block in blocks:
        columns = _widest(math.prod(block), most)
        cut = WinogradVariant(
            variant.modes,
            variant.tile,
            block,
            variant.lanes,
            variant.vectors,
            columns,
            interleaved=variant.interleaved,
        )
        found.append(Priced(cut, tasks.cycles(block, columns)))
    return sorted(found, key=lambda candidate: candidate.cycles)


@functools.cache
def _widest(tiles: int, most: int) -> int:
    """Columns of the widest register tile that divides the tiles of a task."""
    return max(columns for columns in range(1, most + 1) if tiles % columns == 0)


def _blocks(s: CanonicalSpec, variant: WinogradVariant) -> list[Triple]:
    """All sensible sizes of tasks."""
    part = axes_of(s, variant.modes).part_size(s.out_size)
    tiles = [-(-o // m) for o, m in zip(part, variant.tile, strict=True)]
    sizes = []
    for count, most_parts in zip(tiles, (4, 8, 8), strict=True):
        parts = range(1, min(most_parts, count) + 1)
        usual = (1, 2, 4, 7, 8, 14, 16) if s.data_format == CHANNELS_LAST else (1, 2, 4, 7, 8, 14, 16, 32, 64)
        sizes.append(sorted({-(-count // p) for p in parts} | {min(count, size) for size in usual}))
    return [(d, h, w) for d, h, w in itertools.product(*sizes) if d * h * w <= _MAX_TILES]


#: Variants that compete while tuning.
MAX_VARIANTS = 16


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[WinogradVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where none is within the error limit."""
    variant = _cheapest(spec, traits)
    return None if variant is None else _stored(spec, traits, variant)


@functools.lru_cache(maxsize=_MAX_KEPT)
def _cheapest(spec: CanonicalSpec, traits: CpuTraits) -> WinogradVariant | None:
    found = priced(spec, traits)
    return found[0].variant if found else None


@functools.lru_cache(maxsize=_MAX_KEPT)
def smaller(spec: CanonicalSpec, traits: CpuTraits) -> list[tuple[WinogradVariant, dict[str, int]]]:
    """Variants and decisions, each with clearly fewer packed weights than the one before, and the cheapest of these."""
    found: list[tuple[WinogradVariant, dict[str, int]]] = []
    least = math.inf
    for candidate in _rough(spec, traits):
        size = winograd_cost.packed_bytes(spec, candidate.variant)
        if size <= _SMALLER * least:
            least = size
            best = _cut(spec, traits, candidate.variant, _blocks(spec, candidate.variant))[0]
            found.append(_stored(spec, traits, best.variant))
    return found


def _stored(spec: CanonicalSpec, traits: CpuTraits, variant: WinogradVariant) -> tuple[WinogradVariant, dict[str, int]]:
    """The variant, which stores its result past the caches where these do not hold it, and its decisions."""
    large = streaming.outgrows_caches(spec, traits, variant.lanes, _run(spec, variant))
    return replace(variant, stream=large and _streamable(spec, variant)), {"unroll": 1}


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: WinogradVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of what :mod:`winograd_cost` names the busiest core does; decisions do not matter."""
    return winograd_cost.amounts(spec, traits, variant)


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[WinogradVariant]:
    """The variants that compete while tuning, the cheapest first; none where Winograd does not apply."""
    found = [candidate.variant for candidate in priced(spec, traits)[:MAX_VARIANTS]]
    whole = [variant for variant in found[:2] if _streamable(spec, variant)]
    streamed = [s for v in whole for s in streaming.streaming(spec, v, v.lanes, _run(spec, v))]
    # which is faster depends on how fast the caches beyond a core's own are
    staged = [replace(variant, staged=True) for variant in found[:4]]
    return [*found[:1], *streamed, *staged, *found[1:]]


def _streamable(spec: CanonicalSpec, variant: WinogradVariant) -> bool:
    """Whether what is stored at once comes from one vector, not from those of several groups."""
    apart = spec.groups > 1 and variant.interleaved == 1
    return spec.data_format != CHANNELS_LAST or not apart or spec.group_filters % variant.lanes == 0


def _run(spec: CanonicalSpec, variant: WinogradVariant) -> int:
    """In channels_first, elements of a row that a task stores one after the other; 0 where it stores by positions."""
    in_rows = transposes_sums(spec, variant) and axes_of(spec, variant.modes).parts[2] == 1
    return variant.tile[2] * variant.block[2] if in_rows else 0
