"""The gradient of a bias on GPUs: for each filter, the sum of the output's gradient over samples and positions.

It has two kernels, beside those of the weights' gradient:

bias_part      kept: the sums over parts of the positions
bias_total     the parts, added in their order
bias_gradient  the same in the user's type
"""

from __future__ import annotations

import math

from tvm import te

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import narrow, widen
from tvm_conv3d.compute.shared.stages import zero_unless
from tvm_conv3d.spec import CHANNELS_LAST

#: Neighbouring threads, which take neighbouring positions in channels_first.
_WARP = 32


def parts_of(spec: CanonicalSpec) -> int:
    """Parts that the positions are cut into."""
    positions = spec.batch * math.prod(spec.out_size)
    return -(-(math.isqrt(positions - 1) + 1) // _WARP) * _WARP


def gradient_shape(spec: CanonicalSpec) -> tuple[int, ...]:
    """The output's gradient with all positions that lie side by side on one axis."""
    per_sample = math.prod(spec.out_size)
    if spec.data_format == CHANNELS_LAST:
        return spec.batch * per_sample, spec.filters
    return spec.batch, spec.filters, per_sample


def read_gradient(spec: CanonicalSpec, gradient: te.Tensor, number: te.Expr, f: te.Expr) -> te.Expr:
    """An element of a tensor of :func:`gradient_shape`, widened: of filter `f` at the position `number` of all."""
    if spec.data_format == CHANNELS_LAST:
        value = gradient[number, f]
    else:
        per_sample = math.prod(spec.out_size)
        value = gradient[number // per_sample, f, number % per_sample]
    return widen(value, spec.dtype, spec.accumulator)


def declare_bias(spec: CanonicalSpec, gradient: te.Tensor) -> tuple[tuple[te.Tensor, ...], tuple[te.Tensor, ...]]:
    """The gradient of the bias, and what is kept for it: the sums of parts. None of either where the spec has no bias.

    There are about as many parts as positions in each. `gradient` is a tensor of :func:`gradient_shape`.
    """
    if not spec.bias:
        return (), ()
    positions, last = spec.batch * math.prod(spec.out_size), spec.data_format == CHANNELS_LAST
    parts = parts_of(spec)
    of_part = -(-positions // parts)
    k, number = te.reduce_axis((0, of_part), name="position"), te.reduce_axis((0, parts), name="part")

    def part_at(*place):  # type: ignore[no-untyped-def]
        part, f = place if last else reversed(place)
        # neighbouring threads read neighbouring elements
        at = part * of_part + k if last else k * parts + part
        inside = [at < positions] if parts * of_part > positions else []
        return te.sum(zero_unless(inside, read_gradient(spec, gradient, at, f), spec.accumulator), axis=[k])

    part = te.compute((parts, spec.filters) if last else (spec.filters, parts), part_at, name="bias_part")
    total = te.compute(
        (spec.filters,), lambda f: te.sum(part[(number, f) if last else (f, number)], axis=[number]), name="bias_total"
    )
    out = te.compute((spec.filters,), lambda f: narrow(total[f], spec.dtype, spec.accumulator), name=BIAS_GRADIENT)
    return (out,), (part,)
