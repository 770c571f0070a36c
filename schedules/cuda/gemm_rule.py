"""The default tile of the implicit matrix product on CUDA cores, where nothing was tuned.

A cost in arbitrary units is compared: the busiest multiprocessor computes `ceil(blocks / multiprocessors)` tiles, and a
sum costs more the smaller the tile of a thread is, as every product reads its factors from shared memory. The model has
not been fitted to measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tvm_conv3d.compute.implicit_gemm import GemmVariant, extents_of
from tvm_conv3d.cuda.architectures import GpuTraits
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec

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
_MOST_SUMS = 256

#: Terms of the reduction that are gathered at a time.
_STEP = {4: 16, 8: 8}

#: Share of a reduction that may be padding before taps and channels are flattened.
_MOST_WASTE = 0.2


@dataclass(frozen=True)
class Candidate:
    """A variant and its cost."""

    variant: GemmVariant
    cost: float


def candidates(spec: Conv3DSpec, traits: GpuTraits) -> list[Candidate]:
    """Variants for `spec` (axes collapsed), the cheapest first."""
    found = []
    for cells, filters, threads_cells, threads_filters in TILES:
        item = np.dtype(spec.accumulator).itemsize
        sums = cells * filters // (threads_cells * threads_filters)
        if sums * item > _MOST_SUMS:
            continue
        variant = fitted(spec, GemmVariant(cells, filters, _STEP[item], threads_cells, threads_filters))
        e = extents_of(spec, variant)
        blocks = e.planes * spec.groups * e.cell_blocks * e.filter_blocks
        busiest = math.ceil(blocks / traits.multiprocessors)
        # one block alone waits for its own loads
        alone = 1.5 if busiest == 1 else 1.2 if busiest < 4 else 1.0
        per_sum = 1 + 2 / math.sqrt(sums) + 8 / cells + 8 / filters
        found.append(Candidate(variant, busiest * alone * cells * filters * per_sum))
    return sorted(found, key=lambda candidate: candidate.cost)


def fitted(spec: Conv3DSpec, variant: GemmVariant) -> GemmVariant:
    """`variant` with the reduction, the vectors of channels and of output elements that suit `spec`."""
    item = np.dtype(spec.accumulator).itemsize
    widest = 16 // item if spec.dtype == spec.accumulator else 1
    last = spec.data_format == CHANNELS_LAST
    step = variant.step
    waste = 1 - spec.group_channels / (-(-spec.group_channels // step) * step)
    flat = waste > _MOST_WASTE and math.prod(spec.kernel) > 1
    vector = widest if last and spec.group_channels % widest == 0 and step % widest == 0 else 1
    if last:
        along, of_thread = spec.group_filters, variant.filters // variant.threads_filters
    else:
        along, of_thread = math.prod(spec.out_size), variant.cells // variant.threads_cells
    store = max(v for v in (1, 2, 4) if v <= widest and along % v == 0 and of_thread % v == 0)
    return replace(variant, flat=flat, vector=vector, store=store)
