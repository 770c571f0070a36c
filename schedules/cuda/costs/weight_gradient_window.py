"""Which variants of the gradient of weights by windows there are, and which one is taken untuned."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tvm_conv3d.compute.cuda.variants import WeightGradientWindowVariant
from tvm_conv3d.compute.cuda.weight_gradient_window import axis_of
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.costs.tile_cost import ADDITION, LAUNCH, MAX_KEPT
from tvm_conv3d.schedules.decisions import largest_divisor
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Filters of a group, of several, up to which a matrix product would compute mostly padding.
_FEW_FILTERS = 15

#: Taps and columns of a thread, at most, and cells that it holds.
_MAX_TAPS, _COLUMNS, _MAX_HELD = 16, (4, 7, 5, 3, 2, 1), 32

#: Parts, at most, as their sums are added one after the other; runs of a part, at least; threads of a block.
_MAX_PARTS, _MIN_RUNS, _THREADS = 256, 8, 128

#: The share of the published peak, and of the bandwidth, that threads with their own windows reach.
_SHARE_OF_PEAK, _SHARE_OF_BANDWIDTH = 0.25, 0.8


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: WeightGradientWindowVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan: of arithmetic or of traffic, whichever is more, and of adding the parts."""
    item = np.dtype(spec.accumulator).itemsize
    weights = math.prod(spec.kernel) * spec.group_channels * spec.filters
    peak = 1e3 * traits.teraflops * (0.5 if item == 8 else 1.0)
    positions = spec.batch * math.prod(spec.out_size)
    arithmetic = 2 * weights * positions / (_SHARE_OF_PEAK * peak)
    moved = item * (math.prod(spec.input_shape) + math.prod(spec.output_shape) + 2 * variant.parts * weights)
    return {
        "windows": max(arithmetic, moved / (_SHARE_OF_BANDWIDTH * traits.gigabytes)),
        "addition": LAUNCH + ADDITION * variant.parts,
    }


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[WeightGradientWindowVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where groups have many filters."""
    found = variants(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[WeightGradientWindowVariant]:
    """The variants that compete while tuning, the default's first; none where groups have many filters."""
    if spec.groups == 1 or spec.group_filters > _FEW_FILTERS:
        return []
    along = axis_of(spec)
    taps = largest_divisor(spec.kernel[along], _MAX_TAPS)
    stride, dilation = spec.strides[along], spec.dilation[along]
    found = []
    for columns in (c for c in _COLUMNS if spec.out_size[along] % c == 0):
        held = (columns - 1) * stride + taps
        # where windows do not overlap, columns share nothing
        if columns == 1 or (dilation == 1 and stride < taps and held <= _MAX_HELD):
            found.append(_with_parts(spec, traits, taps, columns))
    return found


def _with_parts(spec: CanonicalSpec, traits: GpuTraits, taps: int, columns: int) -> WeightGradientWindowVariant:
    """So many parts that threads fill the GPU, but few where runs are few, or the parts' sums much memory."""
    item = np.dtype(spec.accumulator).itemsize
    runs = spec.batch * math.prod(spec.out_size) // columns
    weights = math.prod(spec.kernel) * spec.group_channels * spec.filters
    wanted = -(-traits.multiprocessors * traits.threads_per_multiprocessor * taps // weights)
    parts = max(1, min(wanted, _MAX_PARTS, runs // _MIN_RUNS, MAX_KEPT // (weights * item)))
    if spec.data_format == CHANNELS_LAST:
        along_filters = largest_divisor(spec.filters, _THREADS)
        along_parts = _THREADS // along_filters
    else:
        along_parts = min(_THREADS, 1 << (parts - 1).bit_length())
        along_filters = largest_divisor(spec.filters, _THREADS // along_parts)
    parts = -(-parts // along_parts) * along_parts
    store = math.gcd(16 // item, spec.filters)
    return WeightGradientWindowVariant(taps, columns, parts, along_parts, along_filters, store)
