"""How a direct convolution stores a large output, where nothing was tuned.

Stores decide where sums are short. An output that the caches do not hold goes past them; one that they hold is written
fastest in one stream, cell by cell. Measured on Zen 4 with outputs of 1 to 87 MB.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.compute.direct import DirectVariant, needs_gather
from tvm_conv3d.schedules.llvm import runs
from tvm_conv3d.schedules.llvm.tile_rule import WIDTH_PENALTY, task_box
from tvm_conv3d.spec import Conv3DSpec, Triple
from tvm_conv3d.targets import CpuTraits

#: Products of a sum up to which stores decide, and the share of the last cache from which an output is large.
_FEW_TERMS, _LARGE = 32, 0.25


def in_strips(variant: DirectVariant) -> DirectVariant:
    """`variant` with its results stored past the caches, a strip of cells at a time."""
    return replace(variant, order="strips", stream=True)


def cell_by_cell(spec: Conv3DSpec, traits: CpuTraits, variant: DirectVariant) -> list[DirectVariant]:
    """`variant` with all filters of one cell as its register tile; none where they are too few or too many for that."""
    s = collapse(spec)
    vectors = -(-s.filters // variant.lanes)
    if s.groups > 1 or not max(WIDTH_PENALTY) < vectors <= traits.registers // 2 - 2:
        return []
    cell = replace(variant, vectors=vectors, rows=1, columns=1, order="spatial_filters", stream=False)
    return [replace(cell, gather="task" if needs_gather(spec, cell) else "none")]


def for_large_outputs(
    spec: Conv3DSpec, traits: CpuTraits, variant: DirectVariant, box: Triple
) -> tuple[DirectVariant, Triple, dict[str, int]]:
    """The variant, its task and the decisions on strips, where all filters of a cell are computed in one task."""
    s = collapse(spec)
    item = np.dtype(s.accumulator).itemsize
    if runs.outgrows_caches(spec, traits):
        if s.group_filters % variant.lanes:
            tile = variant.rows * variant.columns * s.filters * item
            return in_strips(variant), box, {"strip": max(1, traits.l1 // 2 // tile)}
        # the longer sums of a stem take as long as its stores, block of filters after block
        stem = variant.unroll_taps and s.filters > variant.vectors * variant.lanes
        return replace(variant, stream=not stem), box, {}
    few = math.prod(s.kernel) * s.group_channels <= _FEW_TERMS and not variant.unroll_taps
    if few and runs.stored_bytes(spec) >= _LARGE * traits.l3:
        for cell in cell_by_cell(spec, traits, variant):
            return cell, task_box(s, traits, (1, 1), s.channels * item), {}
    return variant, box, {}
