"""Which variants of the direct convolution there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost:

    product_N       cycles that steps of the reduction take of the vector units, in register tiles of N vectors
    product_shared  the same in tiles of one vector of interleaved groups
    product_narrow  the same in tiles of vectors of less than half a register
    shared          of these, steps of interleaved groups: inputs are loaded apart from the multiplication
    conflict        of these, steps whose input positions overfill a set of L1
    tile            register tiles
    store           vectors of output
    store_tail      those that are stored in part, as filters end in a tail
    gather          vectors of input that are copied
    element         elements that are copied one by one, as channels fill no vectors
    interleave      elements that are copied to where interleaved groups are side by side
    interleave_rows the same in channels_first
    transpose       vectors of input that are copied from channels_first
    transpose_tail  the same where channels end in a tail
    row             rows that are started there: each of a channel lies in a page of its own
    segment         in channels_first, parts of rows that register tiles store, one for each filter
    weights_l3      bytes of weights that are read anew, for each register tile, from L3
    waiting         cycles for weights from memory, beyond those of the products that are done meanwhile
    l3              bytes of input and output, where L3 holds both
    memory          cycles for them where it does not, beyond those of the products that are done meanwhile
    task            tasks
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.direct import DirectVariant, needs_gather
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.compute.shared.stages import window_extents
from tvm_conv3d.schedules.llvm.costs import store_rule, streaming
from tvm_conv3d.schedules.llvm.costs.memory import SHARE_OF_L3, bytes_moved, moved, waiting_for_weights
from tvm_conv3d.schedules.llvm.costs.tile_rule import (
    Tile,
    best_tile,
    busiest_share,
    good_tiles,
    live_share,
    overfills_a_set,
    product_of,
    relative_vector_cost,
    sharings,
    step_cycles,
    task_box,
    tasks,
    tiles_of,
    worthwhile_sharing,
)
from tvm_conv3d.spec import CHANNELS_LAST, Triple
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


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: DirectVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does."""
    s, tile = spec, (variant.rows, variant.columns)
    box = (decisions["depth"], decisions["rows"], decisions["columns"])
    packing = FilterPacking.of(s, variant)
    blocks = packing.sharing * packing.blocks
    count = tasks(s, tile, box) * (blocks if variant.order == "filters_parallel" else 1)
    share = busiest_share(count, traits)
    width = relative_vector_cost(traits, s, variant.lanes)
    positions = s.batch * math.prod(tiles_of(s, tile))
    live = live_share(s, 0) * (live_share(s, 1) if variant.rows == 1 else 1)
    terms = math.prod(s.kernel) * s.group_channels
    product = share * positions * blocks * terms * live * step_cycles(math.prod(tile), variant.vectors, width)
    weights = 4.0 * terms * s.filters
    done = {
        _product(s, traits, variant): product,
        "tile": share * positions * blocks,
        **moved(bytes_moved(s), traits, product),
        "task": share * count,
        **_stored(s, variant, width / traits.cores),
        **_gathered(s, traits, variant, box, share),
    }
    if variant.interleaved > 1:
        done["shared"] = product
    if overfills_a_set(s, traits, *tile):
        done["conflict"] = product
    if weights > SHARE_OF_L3 * traits.l3:
        done["waiting"] = waiting_for_weights(product, weights)
    if 4.0 * terms * variant.vectors * variant.lanes > traits.l2 / 2:
        # each tile reads its weights anew, from behind the core's own cache
        done["weights_l3"] = share * positions * weights * live
    return done


def _product(s: CanonicalSpec, traits: CpuTraits, variant: DirectVariant) -> str:
    """What a variant's steps count as."""
    if variant.interleaved == 1 and 2 * variant.lanes < traits.lanes(s.accumulator):
        return "product_narrow"
    return product_of(variant.vectors, variant.interleaved > 1)


def _stored(s: CanonicalSpec, variant: DirectVariant, share: float) -> dict[str, float]:
    """What storing a core's share of the output takes."""
    results = math.prod(s.output_shape)
    if s.data_format != CHANNELS_LAST:
        return {"segment": share * results / variant.columns}
    found = {"store": share * results / variant.lanes}
    if s.set_filters * variant.interleaved % variant.lanes:
        found["store_tail"] = share * results / (s.set_filters * variant.interleaved)
    return found


def _gathered(
    s: CanonicalSpec, traits: CpuTraits, variant: DirectVariant, box: Triple, share: float
) -> dict[str, float]:
    """What copying the busiest core's share of the input takes."""
    if variant.gather == "none":
        return {}
    if variant.gather == "root":
        whole = tiles_of(s, (variant.rows, variant.columns))
        copied, of_core = _copied_positions(s, variant, whole), s.batch / traits.cores
    else:
        copied, of_core = _copied_positions(s, variant, box), share * tasks(s, (variant.rows, variant.columns), box)
    elements = of_core * copied * s.channels
    if variant.interleaved > 1:
        return {"interleave" if s.data_format == CHANNELS_LAST else "interleave_rows": elements}
    if s.data_format != CHANNELS_LAST:
        row = (box[2] * variant.columns - 1) * s.strides[2] + s.window[2]
        tail = "_tail" if s.channels % variant.lanes else ""
        return {f"transpose{tail}": elements / variant.lanes, "row": elements / row}
    return {"gather": elements / variant.lanes} if s.channels % variant.lanes == 0 else {"element": elements}


def _copied_positions(s: CanonicalSpec, variant: DirectVariant, box: Triple) -> int:
    """Input positions of a task of `box`."""
    return math.prod(window_extents(s, (box[0], box[1] * variant.rows, box[2] * variant.columns)))


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
