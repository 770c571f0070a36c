"""Which Winograd variant on a GPU where nothing was tuned, and whether one at all.

The estimate of a variant is that of its matrix products (:mod:`tile_cost`) or of their traffic with the GPU's memory,
whichever takes longer, of the traffic or the arithmetic of both transforms, and of the further launches. Nothing of it
was fitted to measurements: Winograd must be cheaper than the implicit matrix product by a wide margin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import LANES, extents_of
from tvm_conv3d.compute.cuda.winograd_gemm import error_bound
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import MAX_TAPS_AND_OUTPUTS
from tvm_conv3d.compute.shared.winograd_axes import DILATED, FOLDED, PLAIN, STRIDED, axes_of
from tvm_conv3d.schedules.cuda.costs import gemm
from tvm_conv3d.schedules.cuda.costs.tile_cost import (
    ADVANTAGE,
    LAUNCH,
    STAGES,
    VARIED,
    can_run_ahead,
    of_tiles,
    share_of_registers,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Largest relative error (2-norm) that a default plan may be expected to have.
ERROR_LIMIT = 1e-5

#: At most so many output positions has a tile along an axis, and its window, which a thread holds in registers.
_LARGEST_TILE, _MAX_HELD = 4, 64

#: Channels and filters from which on Winograd is looked at.
_MIN_CHANNELS = 16

#: Channels of a step of the product; the shorter one where the longer would be much padding.
_STEPS = (16, 8)
_MAX_WASTE = 0.2

#: Variants that compete while tuning.
_MAX_VARIANTS = 8

#: Bytes of an element, and the share of the published bandwidth that copies reach.
_ITEM, _SHARE = 4, 0.8

#: Operations for an element that a transform reads or writes, those that find its place included.
_TRANSFORM = 24.0


def candidates(spec: CanonicalSpec, traits: GpuTraits) -> list[WinogradGemmVariant]:
    """Variants within the error limit, the cheapest first; empty where Winograd does not apply."""
    if spec.groups != 1 or spec.dtype != "float32" or spec.empty or min(spec.channels, spec.filters) < _MIN_CHANNELS:
        return []
    costs = {variant: nanoseconds(spec, traits, variant) for variant in _possible(spec)}
    return sorted(costs, key=lambda variant: costs[variant])[:_MAX_VARIANTS]


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: WinogradGemmVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan, and as many more as must be saved for it to be taken."""
    modelled = nanoseconds(spec, traits, variant)
    return {"products": modelled, "doubt": modelled / ADVANTAGE - modelled}


def nanoseconds(spec: CanonicalSpec, traits: GpuTraits, variant: WinogradGemmVariant) -> float:
    """The modelled time of a whole convolution."""
    e = extents_of(spec, variant)
    frequencies = math.prod(e.frequencies)
    padded = e.steps * variant.step
    filters = e.filter_blocks * variant.filters
    data = frequencies * padded * math.prod(e.data_shape)
    sums = frequencies * e.cell_blocks * variant.cells * filters
    terms = e.taps * padded
    share = share_of_registers(variant.cells * variant.filters // (variant.threads_cells * variant.threads_filters))
    blocks = frequencies * e.cell_blocks * e.filter_blocks
    product = of_tiles(traits, blocks, variant.cells, variant.filters, terms, _ITEM, LANES, False, share)
    weights = frequencies * terms * filters
    bandwidth = _SHARE * traits.gigabytes / _ITEM
    moved = [math.prod(spec.input_shape) + data, data + weights + sums, sums + math.prod(spec.output_shape)]
    transforms = [_TRANSFORM * count / (1e3 * traits.teraflops) for count in (data, sums)]
    first, middle, last = (elements / bandwidth for elements in moved)
    return max(first, transforms[0]) + max(product, middle) + max(last, transforms[1]) + 2 * LAUNCH


def _possible(s: CanonicalSpec) -> Iterator[WinogradGemmVariant]:
    for modes in _modes(s):
        axes = axes_of(s, modes)
        parts = [o // p for o, p in zip(s.out_size, axes.parts, strict=True)]
        tiles: list[list[int]] = []
        for axis, (taps, out) in enumerate(zip(axes.taps, parts, strict=True)):
            largest = min(_LARGEST_TILE, max(2, out), MAX_TAPS_AND_OUTPUTS - taps)
            # only depth's taps may be left to the product
            tiles.append([1] if taps == 1 else [1] * (axis == 0) + list(range(2, largest + 1)))
        waste = 1 - axes.channels / (-(-axes.channels // _STEPS[0]) * _STEPS[0])
        step = _STEPS[waste > _MAX_WASTE]
        for depth, height, width in itertools.product(*tiles):
            tile = (depth, height, width)
            held = math.prod(m + t - 1 if m > 1 else 1 for m, t in zip(tile, axes.taps, strict=True))
            if held == 1 or held > _MAX_HELD:
                continue
            for cells, filters, threads_cells, threads_filters in gemm.TILES:
                sums = cells * filters // (threads_cells * threads_filters)
                variant = WinogradGemmVariant(modes, tile, cells, filters, step, threads_cells, threads_filters)
                # of what is stored at once
                along = filters // threads_filters if s.data_format == CHANNELS_LAST else cells // threads_cells
                fits = sums * _ITEM <= gemm.MAX_SUMS and along % LANES == 0
                if fits and error_bound(s, variant) <= ERROR_LIMIT:
                    yield variant


def _modes(s: CanonicalSpec) -> Iterator[str]:
    """Combinations of the modes that suit each axis."""
    options = []
    for kernel, stride, dilation, out in zip(s.kernel, s.strides, s.dilation, s.out_size, strict=True):
        if kernel == 1 and stride > 1:
            options.append(FOLDED)
        elif dilation > 1:
            options.append(DILATED if stride == 1 and out % dilation == 0 else FOLDED)
        elif stride > 1:
            options.append(STRIDED + FOLDED)
        else:
            options.append(PLAIN)
    return ("".join(combination) for combination in itertools.product(*options))


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[WinogradGemmVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where none is within the error limit."""
    found = candidates(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[WinogradGemmVariant]:
    """The variants that compete while tuning, the default's first; and the best of them with copies that run ahead."""
    found = candidates(spec, traits)
    staged = (replace(variant, stages=stages) for variant in found[:VARIED] for stages in STAGES)
    return found + [variant for variant in staged if _can_run_ahead(spec, traits, variant)]


def _can_run_ahead(spec: CanonicalSpec, traits: GpuTraits, variant: WinogradGemmVariant) -> bool:
    e = extents_of(spec, variant)
    return can_run_ahead(traits, variant, e.taps * e.steps, (variant.cells + variant.filters) * _ITEM)
