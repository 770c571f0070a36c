"""The gradient of weights where groups have few of them, depthwise included: a thread sums a few taps of one filter.

For GPUs. Positions of the output, in runs of neighbouring columns, are cut into parts. A thread has one part, one
filter, one channel of its group, and some taps of one row; it reads run after run of the input under them, and of the
output's gradient. In channels_first runs and taps are along the height, so that neighbouring threads, whose runs are
neighbours along the width, read neighbouring elements.

Stages, each a block that a schedule places:

window     the input under one run
gradients  the output's gradient of the run
product    the sums of a thread
partial    kept: the sums of all parts, in the order of the weights
total      the parts, added in their order by a second kernel
tile, out  the store, narrowed to the user's type
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tvm_conv3d.compute.cuda.bias_gradient import declare_bias, gradient_shape, read_gradient
from tvm_conv3d.compute.cuda.variants import WeightGradientWindowVariant
from tvm_conv3d.compute.shared.argument import GRADIENT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen
from tvm_conv3d.compute.shared.stages import error_of_sums, unravel, window_extents, zero_padded, zero_unless
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names


def axis_of(spec: CanonicalSpec) -> int:
    """The axis along which a thread has positions and taps: the width, or the height, if kernels are as long there."""
    _, height, width = spec.kernel
    return 1 if spec.data_format != CHANNELS_LAST and height >= width else 2


def runs_of(spec: CanonicalSpec, variant: WeightGradientWindowVariant) -> int:
    """Runs of columns in all rows of all samples."""
    return spec.batch * math.prod(spec.out_size) // variant.columns


def declare(spec: CanonicalSpec, variant: WeightGradientWindowVariant) -> Declaration:
    """The TE declaration; arguments: input, gradient of the output, gradient of the weights.

    Rows of weights are numbered by channel and tap, so that those of a thread lie side by side.

    Raises:
        ValueError: `variant` does not divide what it cuts, or reads dilated windows of several columns.
    """
    v, along = variant, axis_of(spec)
    if (
        spec.kernel[along] % v.taps
        or spec.filters % v.store
        or spec.filters % v.threads_filters
        or v.parts % v.threads_parts
    ):
        raise ValueError(f"{spec.key()} can't be cut so. Received: {v}")
    # columns behind the end of a row would have zeros for gradients, which make NaN of an infinite input
    if spec.out_size[along] % v.columns or (v.columns > 1 and spec.dilation[along] > 1):
        raise ValueError(f"{spec.key()} has no windows of several columns. Received: {v}")
    stored = storage_dtype(spec.dtype)
    x = te.placeholder(spec.input_shape, stored, name="x")
    gradient = te.placeholder(gradient_shape(spec), stored, name=GRADIENT)
    biases, of_bias = declare_bias(spec, gradient)
    product = _product(spec, v, _window(spec, v, x), _gradients(spec, v, gradient))
    partial = te.compute(product.shape, lambda *at: product[at], name="partial")
    part = te.reduce_axis((0, v.parts), name="part")
    shape = partial.shape[1:]
    total = te.compute(shape, lambda *at: te.sum(partial[(part, *at)], axis=[part]), name="total")
    tile = te.compute(shape, lambda *at: narrow(total(*at), spec.dtype, spec.accumulator), name="tile")
    out = te.compute(shape, lambda *at: tile[at], name="out")
    taps = math.prod(spec.kernel)
    axes = (_taps(spec), (term(0, divisor=taps),), (term(1),), (term(2),))
    tiling = Tiling((taps, spec.group_channels, spec.filters // v.store, v.store), axes)
    return Declaration((x, gradient, out, *biases), tiling, (partial, *of_bias), aligned=True)


def error_bound(spec: CanonicalSpec, variant: WeightGradientWindowVariant) -> float:
    """The relative error (2-norm) to expect of data without structure."""
    return error_of_sums(spec, spec.batch * math.prod(spec.out_size), on_gpu=True)


def _run(spec: CanonicalSpec, v: WeightGradientWindowVariant, part: Expr, number: Expr) -> tuple[list[Expr], Expr]:
    """Sample and first position of a run of a part, and its number among all."""
    runs, along = runs_of(spec, v), axis_of(spec)
    of_part = -(-runs // v.parts)
    # neighbouring threads read neighbouring elements
    run = part * of_part + number if spec.data_format == CHANNELS_LAST else number * v.parts + part
    extents = [n // v.columns if axis == along else n for axis, n in enumerate(spec.out_size)]
    per_sample = math.prod(extents)
    corner = unravel(run % per_sample, extents)
    corner[along] *= v.columns
    return [run // per_sample, *corner], run


def _inside(spec: CanonicalSpec, v: WeightGradientWindowVariant, run: Expr) -> list[Expr]:
    """The condition that a run exists, where parts are not equal."""
    runs = runs_of(spec, v)
    return [run < runs] if runs % v.parts else []


def _window(spec: CanonicalSpec, v: WeightGradientWindowVariant, x: te.Tensor) -> te.Tensor:
    """The cells under the taps of a thread; of one column these alone, of several all that lie between, too."""
    extents, along = window_extents(spec, spec.out_size), axis_of(spec)
    outer = [spec.kernel[0], spec.kernel[3 - along], spec.kernel[along] // v.taps]
    rows = math.prod(outer)

    def at(part, number, row, g, cell):  # type: ignore[no-untyped-def]
        (sample, *corner), run = _run(spec, v, part, number)
        channel = g * spec.group_channels + row // rows
        first, second, third = unravel(row % rows, outer)
        taps = [first, second, second]
        taps[along] = third * v.taps + cell
        where = [p * s + t * gap for p, s, t, gap in zip(corner, spec.strides, taps, spec.dilation, strict=True)]

        def read(index: list[Expr]) -> Expr:
            place = (sample, *index, channel) if spec.data_format == CHANNELS_LAST else (sample, channel, *index)
            return widen(x[place], spec.dtype, spec.accumulator)

        return zero_padded(spec, extents, where, read, _inside(spec, v, run))

    cells = (v.columns - 1) * spec.strides[along] + v.taps
    shape = (v.parts, -(-runs_of(spec, v) // v.parts), spec.group_channels * rows, spec.groups, cells)
    return te.compute(shape, at, name="window")


def _gradients(spec: CanonicalSpec, v: WeightGradientWindowVariant, gradient: te.Tensor) -> te.Tensor:
    """The output's gradient of a run."""
    depth, height, width = spec.out_size

    def at(part, number, f, column):  # type: ignore[no-untyped-def]
        (sample, d, h, w), run = _run(spec, v, part, number)
        position = ((sample * depth + d) * height + h) * width + w + column * (width if axis_of(spec) == 1 else 1)
        return zero_unless(_inside(spec, v, run), read_gradient(spec, gradient, position, f), spec.accumulator)

    shape = (v.parts, -(-runs_of(spec, v) // v.parts), spec.filters, v.columns)
    return te.compute(shape, at, name="gradients")


def _taps(spec: CanonicalSpec) -> tuple[Term, ...]:
    """The number of a tap in the order of the weights, by the number in the order of the rows of threads."""
    taps = math.prod(spec.kernel)
    if axis_of(spec) == 2:
        return (term(0, modulus=taps),)
    depth, height, width = spec.kernel
    return term(0, height * width, height * width, depth), term(0, width, 1, height), term(0, 1, height, width)


def _product(spec: CanonicalSpec, v: WeightGradientWindowVariant, window: te.Tensor, gradients: te.Tensor) -> te.Tensor:
    of_part = -(-runs_of(spec, v) // v.parts)
    number, column = te.reduce_axis((0, of_part), name="run"), te.reduce_axis((0, v.columns), name="column")

    def at(part, row, vector, lane):  # type: ignore[no-untyped-def]
        f = vector * v.store + lane
        cell = column * spec.strides[axis_of(spec)] + row % v.taps
        value = window[part, number, row // v.taps, f // spec.group_filters, cell]
        return te.sum(value * gradients[part, number, f, column], axis=[number, column])

    shape = (v.parts, spec.group_channels * math.prod(spec.kernel), spec.filters // v.store, v.store)
    return te.compute(shape, at, name="product")
