"""Which variants of the direct convolution there are on a CPU, what they cost, and which one is taken untuned."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.direct import DirectVariant, needs_gather
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.llvm.costs import store_rule, streaming
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    Tile,
    best_tile,
    good_tiles,
    sharings,
    task_box,
    tasks,
    tiles_of,
    worthwhile_sharing,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.cpu import CpuTraits

#: Taps of a row times channels up to which they are unrolled beside the tile.
FEW_CHANNELS = 12


#: Register tiles that compete while tuning.
MAX_TILES = 8


#: Ways of sharing vectors among groups that do.
MAX_SHARINGS = 3


ORDERS = ("filters_spatial", "spatial_filters", "filters_parallel")


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[DirectVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    few_channels = _unrolls_taps(spec) and spec.group_channels * spec.kernel[2] <= FEW_CHANNELS
    sharing = worthwhile_sharing(spec, traits)
    tile = best_tile(spec, traits, spec.set_filters, spec.kernel[2] if few_channels else 1, sharing)
    by_rows = few_channels and spec.data_format != CHANNELS_LAST and tile.interleaved == 1
    if by_rows:
        # little is computed and much stored: whole vectors along the rows of one vector of filters
        columns = min(tile.lanes, spec.out_size[2], traits.registers // 2)
        tile = replace(tile, vectors=1, rows=1, columns=columns)
    variant = DirectVariant(
        tile.lanes, tile.vectors, tile.rows, tile.columns, unroll_taps=few_channels, interleaved=tile.interleaved
    )
    if not needs_gather(spec, variant):
        variant = replace(variant, gather="none")
    cells = (tile.rows, tile.columns)
    item = np.dtype(spec.accumulator).itemsize
    box = task_box(spec, traits, cells, spec.channels * item)
    decisions = {"unroll": spec.group_channels if few_channels else 1}
    weights, inputs = (math.prod(shape) * item for shape in (spec.kernel_shape, spec.input_shape))
    # each task would read all weights from memory, while all of the input stays in cache
    weights_decide = weights > traits.l3 // 2 and inputs <= traits.l2 // 2
    if tasks(spec, cells, box) < 2 * traits.cores or weights_decide:
        box = tiles_of(spec, cells)
        variant = replace(variant, order="filters_parallel", gather="none" if variant.gather == "none" else "root")
    elif not by_rows and weights <= traits.l2 // 8:
        # all weights stay in cache: filters inside, so that outputs are written in the order they lie in memory
        variant = replace(variant, order="spatial_filters")
        if variant.interleaved == 1:
            variant, box, strip = store_rule.for_output(spec, traits, variant, box)
            decisions |= strip
    return variant, {"depth": box[0], "rows": box[1], "columns": box[2], **decisions}


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[DirectVariant]:
    """The variants that compete while tuning, the default first: tiles of low cost, then other orders and copies."""
    first, _ = default(spec, traits)
    sharing = worthwhile_sharing(spec, traits)
    taps = spec.kernel[2] if first.unroll_taps else 1
    few = good_tiles(spec, traits, spec.set_filters, taps, sharing, count=MAX_TILES)
    plain = replace(first, order="spatial_filters" if first.order == "strips" else first.order, stream=False)
    tiles = [_with_tile(plain, tile) for tile in few]
    orders = [replace(plain, order=order) for order in ORDERS]
    stores = streaming.streaming(spec, plain, first.lanes)
    if store_rule.competes(spec) and sharing is None:
        stores.append(store_rule.in_strips(plain))
    stores += store_rule.small_tiles(spec, plain)
    found = [first, *stores, *orders, *tiles[:4]]
    if needs_gather(spec, first):
        found += [replace(variant, gather="root" if variant.gather == "task" else "task") for variant in orders]
    # groups that share vectors in other ways, or do not
    others = [other for other in (*sharings(spec, traits)[:MAX_SHARINGS], None) if other != sharing]
    found += [_with_tile(plain, best_tile(spec, traits, spec.set_filters, taps, other)) for other in others]
    if _unrolls_taps(spec):
        narrow = best_tile(spec, traits, spec.set_filters, spec.kernel[2], sharing)
        found.append(
            replace(tiles[0], unroll_taps=False)
            if first.unroll_taps
            else replace(_with_tile(plain, narrow), unroll_taps=True)
        )
    found += tiles[4:]
    # without a copy only tiles that divide the output will do; a variant that needs none saves it
    gathers = [replace(v, gather=_fitting_gather(spec, v)) for v in found]
    return list(dict.fromkeys(gathers))


def _unrolls_taps(spec: CanonicalSpec) -> bool:
    """Whether taps of a row may be unrolled beside the tile: those that a phase lacks are skipped by their loop."""
    return spec.kernel[2] > 1 and not spec.phased


def _with_tile(variant: DirectVariant, tile: Tile) -> DirectVariant:
    return replace(
        variant,
        lanes=tile.lanes,
        vectors=tile.vectors,
        rows=tile.rows,
        columns=tile.columns,
        interleaved=tile.interleaved,
    )


def _fitting_gather(spec: CanonicalSpec, variant: DirectVariant) -> str:
    if not needs_gather(spec, variant):
        return "none"
    return "task" if variant.gather == "none" else variant.gather
