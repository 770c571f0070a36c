"""The default tile of the implicit matrix product on CUDA cores, where nothing was tuned."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.cuda.implicit_gemm import GemmVariant, extents_of, run_of_output
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import BANKS
from tvm_conv3d.schedules.cuda.costs.tile_cost import (
    STAGES,
    VARIED,
    can_run_ahead,
    cheapest_first,
    in_parts,
    is_flat,
    nanoseconds,
    share_of_registers,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Cells and filters of a tile, and threads along each.
TILES = (
    (128, 128, 16, 16),
    (128, 64, 16, 16),
    (64, 128, 16, 16),
    (64, 64, 16, 16),
    (64, 64, 16, 8),
    (256, 32, 32, 8),
    (128, 32, 32, 8),
    (64, 32, 16, 8),
    (32, 64, 8, 16),
    (32, 32, 8, 8),
    (256, 16, 64, 4),
    (128, 16, 32, 4),
    (32, 16, 16, 4),
    (16, 32, 4, 16),
)

#: Bytes of sums in one thread's registers, at most.
MAX_SUMS = 256

#: Terms of the reduction that are gathered at a time.
STEP = {4: 16, 8: 8}


def candidates(spec: CanonicalSpec, traits: GpuTraits) -> list[GemmVariant]:
    """Variants for `spec`, the cheapest first."""
    return [variant for variant, _ in priced(spec, traits)]


def priced(spec: CanonicalSpec, traits: GpuTraits) -> list[tuple[GemmVariant, float]]:
    """The same with their modelled nanoseconds."""
    item = np.dtype(spec.accumulator).itemsize
    costs: dict[GemmVariant, float] = {}
    for cells, filters, threads_cells, threads_filters in TILES:
        sums = cells * filters // (threads_cells * threads_filters)
        if sums * item > MAX_SUMS:
            continue
        variant = fitted(spec, GemmVariant(cells, filters, STEP[item], threads_cells, threads_filters))
        costs |= in_parts(spec, traits, variant, functools.partial(_nanoseconds, spec, traits))
    return cheapest_first(costs)


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: GemmVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan."""
    return {"products": _nanoseconds(spec, traits, variant)}


def _nanoseconds(spec: CanonicalSpec, traits: GpuTraits, variant: GemmVariant) -> float:
    sums = variant.cells * variant.filters // (variant.threads_cells * variant.threads_filters)
    item = np.dtype(spec.accumulator).itemsize
    return nanoseconds(spec, traits, variant, item, tensor=False, share=share_of_registers(sums))


def fitted(spec: CanonicalSpec, variant: GemmVariant) -> GemmVariant:
    """`variant` with the reduction, the vectors of channels and of output elements that suit `spec`."""
    item = np.dtype(spec.accumulator).itemsize
    widest = 16 // item if spec.dtype == spec.accumulator else 1
    last = spec.data_format == CHANNELS_LAST
    step = variant.step
    vector = widest if last and spec.group_channels % widest == 0 and step % widest == 0 else 1
    of_thread = variant.filters // variant.threads_filters if last else variant.cells // variant.threads_cells
    along = run_of_output(spec)
    store = max(v for v in (1, 2, 4) if v <= widest and along % v == 0 and of_thread % v == 0)
    return replace(variant, flat=is_flat(spec, step), vector=vector, store=store)


#: Variants that compete while tuning.
MAX_VARIANTS = 8


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[GemmVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    return candidates(spec, traits)[0], {}


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[GemmVariant]:
    """The variants that compete while tuning, the default's first; and the best of them with copies that run ahead."""
    found = candidates(spec, traits)[:MAX_VARIANTS]
    staged = (replace(variant, stages=stages) for variant in found[:VARIED] for stages in STAGES)
    return found + [variant for variant in staged if _can_run_ahead(spec, traits, variant)]


def _can_run_ahead(spec: CanonicalSpec, traits: GpuTraits, variant: GemmVariant) -> bool:
    # what is copied is not converted; rows are lengthened
    bytes_of_term = (variant.cells + variant.filters + BANKS) * np.dtype(spec.accumulator).itemsize
    turns = extents_of(spec, variant).turns // variant.parts
    return spec.dtype == spec.accumulator and can_run_ahead(traits, variant, turns, bytes_of_term)
