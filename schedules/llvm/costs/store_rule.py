"""How a direct convolution stores its output, where nothing was tuned.

Stores decide where sums are short: small register tiles then write the output nearly in the order in which it lies in
memory. An output that the caches do not hold goes past them. Measured on Zen 4 with outputs of 0.1 to 87 MB.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvm_conv3d.compute.llvm.direct import DirectVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.llvm.costs.streaming import MIN_BYTES, output_bytes
from tvm_conv3d.schedules.llvm.costs.tile_rule import task_box
from tvm_conv3d.spec import CHANNELS_LAST, Triple
from tvm_conv3d.target.cpu import CpuTraits

#: Products of a sum up to which it is hardly longer than its store, and up to which it is short.
_FEWEST_TERMS, _FEW_TERMS = 4, 32

#: Vectors and columns of small tiles for short sums.
_SMALL = ((1, 4), (1, 3), (1, 5), (1, 6))


def in_strips(variant: DirectVariant) -> DirectVariant:
    """`variant` with its results stored past the caches, a strip of output positions at a time."""
    return replace(variant, order="strips", stream=True)


def small_tiles(spec: CanonicalSpec, variant: DirectVariant) -> list[DirectVariant]:
    """`variant` with small register tiles, of each kind the first that divides the rows; none where sums are long."""
    if not _has_short_sums(spec):
        return []
    fitting = [_first_that_divides(spec, variant, shapes) for shapes in (_SMALL, _smallest(spec, variant))]
    return [tile for tile in fitting if tile != variant]


def for_output(
    spec: CanonicalSpec, traits: CpuTraits, variant: DirectVariant, box: Triple
) -> tuple[DirectVariant, Triple, dict[str, int]]:
    """The variant, its task and the decisions on strips, where a task computes all filters of a position."""
    item = np.dtype(spec.accumulator).itemsize
    past_caches = outgrows_caches(spec, traits)
    in_parts = spec.set_filters % variant.lanes != 0
    # the longer sums of a stem take as long as its stores, block of filters after block
    stem = variant.unroll_taps and spec.filters > variant.vectors * variant.lanes
    shapes = _small_shapes(spec, variant, 2 * traits.lanes(spec.accumulator), past_caches, in_parts)
    if shapes:
        small = _first_that_divides(spec, variant, shapes)
        if small != variant:
            variant, box = small, task_box(spec, traits, (1, small.columns), spec.channels * item)
    if past_caches and in_parts:
        tile = variant.rows * variant.columns * spec.filters * item
        return in_strips(variant), box, {"strip": max(1, traits.l1 // 2 // tile)}
    return replace(variant, stream=past_caches and not stem), box, {}


def _terms(s: CanonicalSpec) -> int:
    """Products of a sum."""
    return math.prod(s.kernel) * s.group_channels


def _has_short_sums(s: CanonicalSpec) -> bool:
    """Whether stores may decide, and lie side by side."""
    return _terms(s) <= _FEW_TERMS and s.sets == 1 and s.data_format == CHANNELS_LAST


def _small_shapes(
    s: CanonicalSpec, variant: DirectVariant, least: int, past_caches: bool, in_parts: bool
) -> tuple[tuple[int, int], ...]:
    """Shapes of small tiles, none where a large one is as good: one of all of `least` filters is small itself."""
    if s.filters <= variant.lanes or not _has_short_sums(s):
        return ()
    whole_past = past_caches and not in_parts
    if _terms(s) <= _FEWEST_TERMS:
        return _smallest(s, variant) if s.filters > least and not whole_past else ()
    return _SMALL if in_parts or (whole_past and not variant.unroll_taps) else ()


def _smallest(s: CanonicalSpec, variant: DirectVariant) -> tuple[tuple[int, int], ...]:
    """Shapes for sums that are hardly longer than their store: two or three neighbouring vectors of one position."""
    vectors = -(-s.filters // variant.lanes)
    return ((3, 1),) if vectors % 3 == 0 else ((2, 1),) if vectors % 2 == 0 else ((2, 2), (2, 3))


def _first_that_divides(s: CanonicalSpec, variant: DirectVariant, shapes: tuple[tuple[int, int], ...]) -> DirectVariant:
    """`variant` with the first of the shapes that fills whole rows; as it is where none does."""
    for vectors, columns in shapes:
        if s.out_size[2] % columns == 0:
            return replace(variant, vectors=vectors, rows=1, columns=columns)
    return variant


#: Share of the last cache from which on memory decides. Measured: 17 MB of 32 are better kept, 29 are not.
_SHARE_OF_CACHE = 0.75


def competes(spec: CanonicalSpec) -> bool:
    """Whether results of `spec` can be staged and copied in runs, and are large enough for that to be tried."""
    return _stored_bytes(spec) >= MIN_BYTES


def outgrows_caches(spec: CanonicalSpec, traits: CpuTraits) -> bool:
    """Whether so much is stored that the caches hold little of it at the end: runs are best stored past them.

    Less is stored as fast from the registers: even across its lines, a cache takes more than memory does.
    """
    return _stored_bytes(spec) >= _SHARE_OF_CACHE * traits.l3


def _stored_bytes(spec: CanonicalSpec) -> int:
    """Bytes of the output, none where it is not made of runs."""
    return output_bytes(spec) if spec.data_format == CHANNELS_LAST and not spec.phased else 0
