"""The default tile of the gradient of weights as a matrix product, where nothing was tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.cuda.variants import WeightGradientGemmVariant
from tvm_conv3d.compute.cuda.weight_gradient_gemm import extents_of
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import PART_ON_GPU
from tvm_conv3d.schedules.cuda.costs.gemm import MAX_SUMS, MAX_VARIANTS, STEP, TILES
from tvm_conv3d.schedules.cuda.costs.tile_cost import (
    ADDITION,
    LAUNCH,
    MAX_KEPT,
    MAX_SUMMED_PARTS,
    MIN_TERMS,
    cheapest_first,
    of_tiles,
    share_of_registers,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Blocks for each multiprocessor, for which parts are counted.
_BLOCKS = (1, 2, 4, 8)


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: WeightGradientGemmVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan."""
    return {"products": _nanoseconds(spec, traits, variant)}


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[WeightGradientGemmVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    return variants(spec, traits)[0], {}


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[WeightGradientGemmVariant]:
    """The variants that compete while tuning, the default's first; one of them keeps no parts."""
    costs = {}
    for tile in _tiles(spec):
        priced = {cut: _nanoseconds(spec, traits, cut) for cut in _cuts(spec, traits, tile)}
        for few in ([cut for cut in priced if cut.parts == 1], [cut for cut in priced if cut.parts > 1]):
            if few:
                best = min(few, key=lambda cut: priced[cut])
                costs[best] = priced[best]
    found = [variant for variant, _ in cheapest_first(costs)]
    few = found[:MAX_VARIANTS]
    whole = next(variant for variant in found if variant.parts == 1)
    return few if whole in few else [*few[:-1], whole]


def _tiles(spec: CanonicalSpec) -> Iterator[WeightGradientGemmVariant]:
    """Tiles whose sums fit into registers."""
    item = np.dtype(spec.accumulator).itemsize
    last, widest = spec.data_format == CHANNELS_LAST, 16 // item
    for cells, filters, threads_cells, threads_filters in TILES:
        of_thread = filters // threads_filters
        if cells // threads_cells * of_thread * item <= MAX_SUMS:
            yield WeightGradientGemmVariant(
                cells,
                filters,
                STEP[item],
                threads_cells,
                threads_filters,
                vector=math.gcd(widest, spec.group_channels) if last else 1,
                filter_vector=math.gcd(widest, spec.group_filters) if last else 1,
                store=math.gcd(widest, spec.group_filters, of_thread),
            )


def _cuts(
    spec: CanonicalSpec, traits: GpuTraits, tile: WeightGradientGemmVariant
) -> Iterator[WeightGradientGemmVariant]:
    """`tile` with the positions whole, and in parts; in so many that totals, which long sums have, fit as well."""
    e = extents_of(spec, tile)
    blocks = spec.groups * e.row_blocks * e.filter_blocks
    item = np.dtype(spec.accumulator).itemsize
    kept = blocks * tile.cells * tile.filters * item
    totals_fit = 2 * item * tile.cells * tile.filters <= MAX_SUMS * tile.threads_cells * tile.threads_filters
    most = min(MAX_SUMMED_PARTS, max(1, MAX_KEPT // kept), max(1, e.positions // MIN_TERMS))
    least = 1 if totals_fit else min(most, -(-e.positions // PART_ON_GPU))
    wanted = {
        least,
        -(-e.positions // PART_ON_GPU),
        *(-(-number * traits.multiprocessors // blocks) for number in _BLOCKS),
    }
    for parts in sorted({min(most, max(least, parts)) for parts in wanted}):
        # none of them empty
        turns = extents_of(spec, replace(tile, parts=parts)).turns
        yield replace(tile, parts=-(-e.positions // (turns * tile.step)))


def _nanoseconds(spec: CanonicalSpec, traits: GpuTraits, variant: WeightGradientGemmVariant) -> float:
    e, v = extents_of(spec, variant), variant
    item = np.dtype(spec.accumulator).itemsize
    blocks = spec.groups * e.row_blocks * e.filter_blocks * v.parts
    share = share_of_registers(v.cells * v.filters // (v.threads_cells * v.threads_filters))
    product = of_tiles(traits, blocks, v.cells, v.filters, e.turns * v.step, item, v.vector, False, share)
    if v.parts == 1:
        return product
    return product + LAUNCH + ADDITION * v.parts + 2 * item * blocks * v.cells * v.filters / traits.gigabytes
