"""The default tile of the implicit matrix product on tensor cores, where nothing was tuned."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace

from tvm_conv3d.compute.cuda.implicit_gemm import run_of_output
from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.costs.tile_cost import cheapest_first, in_parts, is_flat, nanoseconds
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Cells and filters of a tile, warps along each. The sums of a tile must fit into shared memory beside two steps.
TILES = (
    (128, 64, 4, 2),
    (64, 128, 2, 4),
    (64, 64, 2, 2),
    (128, 32, 4, 1),
    (32, 64, 1, 4),
    (64, 32, 4, 1),
    (32, 32, 2, 1),
    (64, 16, 4, 1),
    (16, 32, 1, 2),
)

#: Terms of the reduction that are gathered at a time.
_STEP = 32

#: Channels, and filters, of a group from which on tensor cores are taken: fewer leave most of a product to padding.
_MIN_TERMS, _MIN_FILTERS = 16, 9


def candidates(spec: CanonicalSpec, traits: GpuTraits) -> list[TensorVariant]:
    """Variants for `spec`, the cheapest first; none where tensor cores are no help."""
    terms = math.prod(spec.kernel) * spec.group_channels
    if not traits.has_tensor_cores(spec.dtype) or terms < _MIN_TERMS or spec.set_filters < _MIN_FILTERS:
        return []
    costs: dict[TensorVariant, float] = {}
    for cells, filters, warps_cells, warps_filters in TILES:
        variant = fitted(spec, TensorVariant(cells, filters, _STEP, warps_cells, warps_filters))
        found = in_parts(spec, traits, variant, functools.partial(_nanoseconds, spec, traits))
        costs |= {_storing_sums(cut): nanoseconds for cut, nanoseconds in found.items()}
    return [variant for variant, _ in cheapest_first(costs)]


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan."""
    return {"products": _nanoseconds(spec, traits, variant)}


def _nanoseconds(spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant) -> float:
    # each warp reads its factors from shared memory: the fewer, the larger its tile
    read = 16 * variant.warps_cells / variant.cells / 4 + 16 * variant.warps_filters / variant.filters / 4
    return nanoseconds(spec, traits, variant, item=2, tensor=True, share=0.7 / (1 + read))


def fitted(spec: CanonicalSpec, variant: TensorVariant) -> TensorVariant:
    """`variant` with the reduction, the vectors of channels and of output elements that suit `spec`."""
    last = spec.data_format == CHANNELS_LAST
    vector = max(v for v in (1, 2, 4, 8) if spec.group_channels % v == 0 and v <= (8 if last else 1))
    # 16 bytes of the output
    store = max(v for v in (1, 2, 4, 8) if run_of_output(spec) % v == 0)
    return replace(variant, flat=is_flat(spec, variant.step), vector=vector, store=store)


def _storing_sums(variant: TensorVariant) -> TensorVariant:
    """`variant`, which stores 16 bytes of its sums at once where it is in parts."""
    return variant if variant.parts == 1 else replace(variant, store=min(variant.store, 4))


#: Variants that compete while tuning.
MAX_VARIANTS = 8


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[TensorVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where tensor cores are no help."""
    found = candidates(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[TensorVariant]:
    """The variants that compete while tuning, the default's first."""
    return candidates(spec, traits)[:MAX_VARIANTS]
