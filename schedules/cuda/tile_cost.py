"""A cost model of matrix products in tiles, by which default tiles are chosen where nothing was tuned.

The busiest multiprocessor computes ceil(blocks / multiprocessors) tiles. Each takes the time of its arithmetic at the
published peak, of the index arithmetic of its gather, and of its traffic with the second-level cache. The constants are
published or usual figures; the model has not been fitted to measurements.
"""

from __future__ import annotations

import math

from tvm_conv3d.compute.implicit_gemm import Cut, extents_of
from tvm_conv3d.cuda.architectures import GpuTraits
from tvm_conv3d.spec import Conv3DSpec

#: Bytes a nanosecond between one multiprocessor and the second-level cache.
_CACHE_BANDWIDTH = 40.0

#: Cost of finding one gathered vector's place and conditions, in floating-point operations.
_GATHER = 40.0

#: What a multiprocessor loses while one block alone, or few, wait for their own loads.
_ALONE, _FEW = 1.5, 1.2

#: Share of a reduction that may be padding before taps and channels are flattened.
_MOST_WASTE = 0.2


def is_flat(spec: Conv3DSpec, step: int) -> bool:
    """Whether taps and channels are one index of the reduction, as steps of channels alone would be much padding."""
    waste = 1 - spec.group_channels / (-(-spec.group_channels // step) * step)
    return waste > _MOST_WASTE and math.prod(spec.kernel) > 1


def nanoseconds(spec: Conv3DSpec, traits: GpuTraits, variant: Cut, item: int, tensor: bool, share: float) -> float:
    """The modelled time of a whole convolution.

    Args:
        spec: the problem, axes collapsed.
        traits: the GPU.
        variant: what it is cut into.
        item: bytes of a factor.
        tensor: whether tensor cores multiply.
        share: of the peak that a tile of this kind can reach.
    """
    e = extents_of(spec, variant)
    terms = math.prod(e.taps) * e.steps * variant.step
    blocks = e.planes * spec.groups * e.cell_blocks * e.filter_blocks
    return of_tiles(traits, blocks, variant.cells, variant.filters, terms, item, variant.vector, tensor, share)


def of_tiles(
    traits: GpuTraits,
    blocks: int,
    cells: int,
    filters: int,
    terms: int,
    item: int,
    vector: int,
    tensor: bool,
    share: float,
) -> float:
    """The modelled time of `blocks` tiles of cells by filters with sums of `terms`, gathered `vector` at a time."""
    # operations a nanosecond of one multiprocessor
    plain = 1e3 * traits.teraflops / traits.multiprocessors
    if item == 8:
        plain /= 2
    peak = 1e3 * traits.tensor_teraflops / traits.multiprocessors if tensor else plain
    arithmetic = 2 * cells * filters * terms / (peak * share)
    gather = _GATHER * cells * terms / vector / plain
    traffic = item * (terms * (cells + filters) + cells * filters) / _CACHE_BANDWIDTH
    busiest = math.ceil(blocks / traits.multiprocessors)
    waiting = _ALONE if busiest == 1 else _FEW if busiest < 4 else 1.0
    return busiest * waiting * (arithmetic + gather + traffic)


def share_of_registers(sums: int) -> float:
    """The share of the peak that threads with so many sums in registers can reach.

    Every product reads its factors from shared memory: the fewer, the larger a thread's tile.
    """
    return 1 / (1 + 2 / math.sqrt(sums))
