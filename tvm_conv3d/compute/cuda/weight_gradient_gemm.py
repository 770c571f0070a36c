"""The gradient of weights as a matrix product over positions: (taps * channels) x positions by positions x filters.

For GPUs. A block of threads owns a tile of weights, of some taps and channels by some filters. Step by step along the
positions of the output it gathers the input that lies under their taps, zeros outside of the input included, and the
output's gradient.

Stages, each a block that a schedule places:

gather      the left matrix: for each row, a tap and a channel, the input under a step of positions
gradients   the right matrix: the output's gradient there
product     the sums of a tile
partial     kept, where the reduction is cut into parts: the sums of each part
total       the parts, added in their order by a second kernel
tile, out   the store in the order of the weights, narrowed to the user's type

Positions of all samples are one axis, and rows of all taps one; behind their ends both matrices are zero. So parts may
have any number, and no result depends on which thread does what.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te

from tvm_conv3d.compute.cuda.bias_gradient import declare_bias, gradient_shape, read_gradient
from tvm_conv3d.compute.cuda.variants import WeightGradientGemmVariant
from tvm_conv3d.compute.shared.argument import GRADIENT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen
from tvm_conv3d.compute.shared.stages import error_of_sums, in_lanes, unravel, window_extents, zero_padded, zero_unless
from tvm_conv3d.compute.shared.tiled_output import Tiling, term
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names


@dataclass(frozen=True)
class Extents:
    """Sizes of one product.

    Attributes:
        rows: pairs of a tap and a channel of a group.
        positions: of all samples.
        row_blocks, filter_blocks: number of tiles along each side.
        turns: steps of a part.
    """

    rows: int
    positions: int
    row_blocks: int
    filter_blocks: int
    turns: int


def extents_of(spec: CanonicalSpec, variant: WeightGradientGemmVariant) -> Extents:
    """How `variant` cuts `spec`."""
    rows, positions = math.prod(spec.kernel) * spec.group_channels, spec.batch * math.prod(spec.out_size)
    row_blocks, filter_blocks = -(-rows // variant.cells), -(-spec.group_filters // variant.filters)
    return Extents(rows, positions, row_blocks, filter_blocks, -(-positions // (variant.step * variant.parts)))


def declare(spec: CanonicalSpec, variant: WeightGradientGemmVariant) -> Declaration:
    """The TE declaration; arguments: input, gradient of the output, gradient of the weights.

    Raises:
        ValueError: `variant` reads or writes more elements at once than lie side by side.
    """
    v, last = variant, spec.data_format == CHANNELS_LAST
    if spec.group_channels % v.vector or v.cells % v.vector or (v.vector > 1 and not last):
        raise ValueError(f"{spec.key()} has no vectors of {v.vector} channels. Received: {v}")
    if spec.group_filters % v.filter_vector or v.filters % v.filter_vector or (v.filter_vector > 1 and not last):
        raise ValueError(f"{spec.key()} has no vectors of {v.filter_vector} filters. Received: {v}")
    if spec.group_filters % v.store or v.filters % v.store:
        raise ValueError(f"{spec.key()} can't store {v.store} weights at once. Received: {v}")
    e, stored = extents_of(spec, v), storage_dtype(spec.dtype)
    x = te.placeholder(spec.input_shape, stored, name="x")
    gradient = te.placeholder(gradient_shape(spec), stored, name=GRADIENT)
    biases, of_bias = declare_bias(spec, gradient)
    product = _product(spec, v, e, _gather(spec, v, e, x), _gradients(spec, v, e, gradient))
    if v.parts == 1:
        tile = te.compute(product.shape, lambda *at: narrow(product(*at), spec.dtype, spec.accumulator), name="tile")
        out = in_lanes("out", tile, v.store)
        return Declaration((x, gradient, out, *biases), _tiling(spec, v, e), of_bias, aligned=True)
    partial = in_lanes("partial", product, v.store)
    part = te.reduce_axis((0, v.parts), name="part")
    shape = partial.shape[1:]
    total = te.compute(shape, lambda *at: te.sum(partial[(part, *at)], axis=[part]), name="total")
    tile = te.compute(shape, lambda *at: narrow(total(*at), spec.dtype, spec.accumulator), name="tile")
    out = te.compute(shape, lambda *at: tile[at], name="out")
    return Declaration((x, gradient, out, *biases), _tiling(spec, v, e), (partial, *of_bias), aligned=True)


def error_bound(spec: CanonicalSpec, variant: WeightGradientGemmVariant) -> float:
    """The relative error (2-norm) to expect of data without structure."""
    return error_of_sums(spec, spec.batch * math.prod(spec.out_size), on_gpu=True)


def _gather(spec: CanonicalSpec, v: WeightGradientGemmVariant, e: Extents, x: te.Tensor) -> te.Tensor:
    """Rows innermost, as a thread reads several of them for one position."""
    extents = window_extents(spec, spec.out_size)
    # in units of vectors, so that no condition varies inside one
    vectors = spec.group_channels // v.vector

    def at(g, block, turn, q, i, lane):  # type: ignore[no-untyped-def]
        number, row = turn * v.step + q, block * (v.cells // v.vector) + i
        inside = [number < e.positions] if e.turns * v.step * v.parts > e.positions else []
        inside += [row < e.rows // v.vector] if e.row_blocks * v.cells > e.rows else []
        sample, position = _position(spec, number)
        taps = unravel(row // vectors, spec.kernel)
        channel = g * spec.group_channels + row % vectors * v.vector + lane

        def read(cell: list[Expr]) -> Expr:
            index = (sample, *cell, channel) if spec.data_format == CHANNELS_LAST else (sample, channel, *cell)
            return widen(x[index], spec.dtype, spec.accumulator)

        where = [p * s + t * d for p, s, t, d in zip(position, spec.strides, taps, spec.dilation, strict=True)]
        return zero_padded(spec, extents, where, read, inside)

    shape = (spec.groups, e.row_blocks, v.parts * e.turns, v.step, v.cells // v.vector, v.vector)
    return te.compute(shape, at, name="gather")


def _gradients(spec: CanonicalSpec, v: WeightGradientGemmVariant, e: Extents, gradient: te.Tensor) -> te.Tensor:
    """Filters innermost, likewise."""

    def at(g, block, turn, q, j, lane):  # type: ignore[no-untyped-def]
        number, vector = turn * v.step + q, block * (v.filters // v.filter_vector) + j
        inside = [number < e.positions] if e.turns * v.step * v.parts > e.positions else []
        if e.filter_blocks * v.filters > spec.group_filters:
            inside.append(vector < spec.group_filters // v.filter_vector)
        f = g * spec.group_filters + vector * v.filter_vector + lane
        return zero_unless(inside, read_gradient(spec, gradient, number, f), spec.accumulator)

    shape = (spec.groups, e.filter_blocks, v.parts * e.turns, v.step, v.filters // v.filter_vector, v.filter_vector)
    return te.compute(shape, at, name="gradients")


def _product(
    spec: CanonicalSpec, v: WeightGradientGemmVariant, e: Extents, gather: te.Tensor, gradients: te.Tensor
) -> te.Tensor:
    turn, q = te.reduce_axis((0, e.turns), name="turn"), te.reduce_axis((0, v.step), name="term")

    def at(*index):  # type: ignore[no-untyped-def]
        *part, g, block, filters, i, j = index
        number = part[0] * e.turns + turn if part else turn
        left = gather[g, block, number, q, i // v.vector, i % v.vector]
        right = gradients[g, filters, number, q, j // v.filter_vector, j % v.filter_vector]
        return te.sum(left * right, axis=[turn, q])

    shape = (spec.groups, e.row_blocks, e.filter_blocks, v.cells, v.filters)
    return te.compute((v.parts, *shape) if v.parts > 1 else shape, at, name="product")


def _tiling(spec: CanonicalSpec, v: WeightGradientGemmVariant, e: Extents) -> Tiling:
    rows, filters = (term(1, v.cells), term(3)), (term(2, v.filters // v.store), term(4))
    shape = (e.rows, spec.groups, spec.group_filters // v.store, v.store)
    return Tiling(shape, (rows, (term(0),), filters, (term(5),)))


def _position(spec: CanonicalSpec, number: Expr) -> tuple[Expr, list[Expr]]:
    """Sample and output position by their number among those of all samples."""
    per_sample = math.prod(spec.out_size)
    if spec.batch == 1:
        return 0, unravel(number, spec.out_size)
    return number // per_sample, unravel(number % per_sample, spec.out_size)
