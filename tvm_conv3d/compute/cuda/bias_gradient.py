"""The gradient of a bias on GPUs: for each filter, the sum of the output's gradient over samples and positions.

It has two kernels, beside those of the weights' gradient:

bias_read      the output's gradient, a vector at a time: of filters in channels_last, of positions in channels_first
bias_part      kept: the sums over parts of the positions
bias_lane      the sums of a few parts each, by as many threads for a filter as a warp has
bias_total     their sum, in their order
bias_gradient  the same in the user's type
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import te

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import narrow, widen
from tvm_conv3d.compute.shared.stages import zero_unless
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names

#: Threads that add the parts of a filter.
LANES = 32

#: Filters whose parts a block adds, at most: neighbours of 4 bytes, of which 8 fill a sector.
_FILTERS = 12

#: Bytes of the widened elements that a thread reads at once, at most.
_AT_ONCE = 16


def parts_of(spec: CanonicalSpec) -> int:
    """Parts that the positions are cut into: as long as what each of the threads adds that add the parts."""
    return -(-(math.isqrt(LANES * _vectors(spec) - 1) + 1) // LANES) * LANES


def gradient_shape(spec: CanonicalSpec) -> tuple[int, ...]:
    """The output's gradient with all positions that lie side by side on one axis."""
    per_sample = math.prod(spec.out_size)
    if spec.data_format == CHANNELS_LAST:
        return spec.batch * per_sample, spec.filters
    return spec.batch, spec.filters, per_sample


def read_gradient(spec: CanonicalSpec, gradient: te.Tensor, number: Expr, f: Expr) -> Expr:
    """An element of a tensor of :func:`gradient_shape`, widened: of filter `f` at the position `number` of all."""
    if spec.data_format == CHANNELS_LAST:
        value = gradient[number, f]
    else:
        per_sample = math.prod(spec.out_size)
        value = gradient[number // per_sample, f, number % per_sample]
    return widen(value, spec.dtype, spec.accumulator)


def declare_bias(spec: CanonicalSpec, gradient: te.Tensor) -> tuple[tuple[te.Tensor, ...], tuple[te.Tensor, ...]]:
    """The gradient of the bias, and what is kept for it: the sums of parts. None of either where the spec has no bias.

    `gradient` is a tensor of :func:`gradient_shape`.
    """
    if not spec.bias:
        return (), ()
    last, vector, parts = spec.data_format == CHANNELS_LAST, _vector(spec), parts_of(spec)
    read = _read(spec, gradient)
    k = te.reduce_axis((0, int(read.shape[2])), name="position")
    if last:
        part = te.compute(
            (parts, spec.filters // vector, vector),
            lambda p, f, lane: te.sum(read[p, f, k, lane], axis=[k]),
            name="bias_part",
        )
    else:
        of_vector = te.reduce_axis((0, vector), name="of_vector")
        part = te.compute(
            (spec.filters, parts), lambda f, p: te.sum(read[f, p, k, of_vector], axis=[k, of_vector]), name="bias_part"
        )
    few, number = te.reduce_axis((0, parts // LANES), name="few"), te.reduce_axis((0, LANES), name="lane")
    # whole blocks of filters
    of_block = max(n for n in range(1, _FILTERS + 1) if spec.filters % n == 0)
    shape = (spec.filters // of_block, of_block)

    def of_lane(block: Expr, i: Expr, lane: Expr) -> Expr:
        p, f = few * LANES + lane, block * of_block + i
        return te.sum(part[(p, f // vector, f % vector) if last else (f, p)], axis=[few])

    lanes = te.compute((*shape, LANES), of_lane, name="bias_lane")
    total = te.compute(shape, lambda *at: te.sum(lanes[(*at, number)], axis=[number]), name="bias_total")
    out = te.compute(shape, lambda *at: narrow(total[at], spec.dtype, spec.accumulator), name=BIAS_GRADIENT)
    return (out,), (part,)


def _vector(spec: CanonicalSpec) -> int:
    """Neighbouring elements that a thread reads at once: filters, or positions of a sample."""
    widest = _AT_ONCE // np.dtype(spec.accumulator).itemsize
    return math.gcd(widest, spec.filters if spec.data_format == CHANNELS_LAST else math.prod(spec.out_size))


def _vectors(spec: CanonicalSpec) -> int:
    """Vectors of all samples, of one filter or of those that a vector holds."""
    positions = spec.batch * math.prod(spec.out_size)
    return positions if spec.data_format == CHANNELS_LAST else positions // _vector(spec)


def _read(spec: CanonicalSpec, gradient: te.Tensor) -> te.Tensor:
    """The gradient by part, vector of filters or filter, number in the part, and element of the vector."""
    last, vector, parts = spec.data_format == CHANNELS_LAST, _vector(spec), parts_of(spec)
    vectors = _vectors(spec)
    of_part = -(-vectors // parts)

    def at(first: Expr, second: Expr, k: Expr, lane: Expr) -> Expr:
        # neighbouring threads read neighbouring vectors
        number = k * parts + (first if last else second)
        inside = [number < vectors] if parts * of_part > vectors else []
        place = (number, second * vector + lane) if last else (number * vector + lane, first)
        return zero_unless(inside, read_gradient(spec, gradient, *place), spec.accumulator)

    around = (parts, spec.filters // vector) if last else (spec.filters, parts)
    return te.compute((*around, of_part, vector), at, name="bias_read")
