"""Winograd along rows for grouped layers: the width is computed by F(m, k), depth and height tap by tap.

With one channel a group there are no sums over channels that would pay for transforms along three axes. Along one they
cost little, and still save half of a kernel of 5 and three fifths of one of 7. The convolution falls apart into one
without taps along the width for each of the m + k - 1 frequencies; depth and height may have any stride and dilation.

Lanes of a vector are filters, and each lane has the input of its own group
(:mod:`tvm_conv3d.compute.llvm.grouped`).

Stages, each a block that a schedule places:

gather      zero-padded input positions, for each lane those of its group
input       the rows' transform: one image for each frequency
product     the sums over channels and the taps of depth and height, on register tiles
output      the inverse transform
transposed  of channels_first only: sums in rows of each filter
out         bias, activation and store
seen        a number of each register tile, finite where all its sums are
flags       the sum of these for a task: Winograd spreads NaN and infinity over its tiles
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.llvm.variants import WinogradRowsVariant
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import transforms
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.packing import Weights, bias_in_blocks
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import finish, window_extents, zero_padded
from tvm_conv3d.compute.shared.tiled_output import Tiling, term
from tvm_conv3d.compute.shared.winograd_packing import DTYPE, transformed_taps
from tvm_conv3d.compute.shared.winograd_stages import expected_error, index_names, transform
from tvm_conv3d.spec import CHANNELS_LAST, Triple

Expr = Any  # a TVM expression; its classes are not public names


def applies(spec: CanonicalSpec) -> bool:
    """Whether rows can be transformed: groups, and taps along the width that are neither strided nor dilated."""
    return spec.groups > 1 and spec.kernel[2] > 1 and spec.strides[2] == spec.dilation[2] == 1 and not spec.empty


def declare(spec: CanonicalSpec, variant: WinogradRowsVariant) -> Declaration:
    """The TE declaration; arguments: input, transformed weights, packed bias, output, flags.

    Flags are elements of the accumulator's type, all finite when every sum was; their shape is (batch, groups of
    positions along depth, height, width, blocks of filters, lanes).

    Raises:
        ValueError: `spec` has one group, a stride or dilation along the width, or no taps there.
    """
    if not applies(spec):
        raise ValueError(f"Groups and taps along an unstrided, undilated width are needed. Received: {spec.key()}")
    return _Builder(spec, variant).declaration()


def groups_of_cells(spec: CanonicalSpec, variant: WinogradRowsVariant) -> Triple:
    """Tasks along each axis of `spec`."""
    depth, height, width = spec.out_size
    bd, bh, bw = variant.block
    return -(-depth // bd), -(-height // bh), -(-width // (bw * variant.tile))


def declare_packing(spec: CanonicalSpec, variant: WinogradRowsVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (blocks of filters, frequencies, kd, kh, channels of a group, lanes).
        Bias (blocks, lanes).
    """
    lanes, blocks = variant.lanes, -(-spec.filters // variant.lanes)

    def taps_at(taps, block, channel, lane):  # type: ignore[no-untyped-def]
        filter_ = block * lanes + lane
        inside = [filter_ < spec.filters] if spec.filters % lanes else []
        return weights.kernel(taps, channel, filter_, inside).astype(DTYPE)

    one = transforms(1, 1).kernel
    along_w = transforms(variant.tile, spec.kernel[2]).kernel
    _, sums = transformed_taps(taps_at, spec.kernel, (one, one, along_w), (blocks, spec.group_channels, lanes))
    kernel = te.compute(
        (blocks, len(along_w), *spec.kernel[:2], spec.group_channels, lanes),
        lambda block, w, d, h, channel, lane: sums(d, h, w, block, channel, lane).astype(spec.accumulator),
        name=PACKED_KERNEL,
    )
    return kernel, bias_in_blocks(weights, spec.filters, (blocks, lanes))


def error_bound(spec: CanonicalSpec, variant: WinogradRowsVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return expected_error(spec, spec.group_channels * math.prod(spec.kernel[:2]), [(variant.tile, spec.kernel[2])])


class _Builder:
    """The stages of one declaration."""

    def __init__(self, spec: CanonicalSpec, variant: WinogradRowsVariant) -> None:
        self.spec = spec
        self.variant = variant
        self.acc = spec.accumulator
        self.matrices = transforms(variant.tile, spec.kernel[2])
        self.frequencies = len(self.matrices.input)
        self.groups = groups_of_cells(spec, variant)
        self.blocks = -(-spec.filters // variant.lanes)

    def declaration(self) -> Declaration:
        spec, variant = self.spec, self.variant
        x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
        shape = (self.blocks, self.frequencies, *spec.kernel[:2], spec.group_channels, variant.lanes)
        kernel = te.placeholder(shape, self.acc, name="kernel")
        bias = te.placeholder((self.blocks, variant.lanes), self.acc, name="bias")
        sums = self._output(self._product(self._input(self._gather(x)), kernel))
        residual = Residual(spec, spec.output_shape)
        out = self._out(sums, bias, residual)
        return Declaration((x, kernel, bias, *residual.tensors, out, self._flags(sums)), self._tiling())

    def _gather(self, x: te.Tensor) -> te.Tensor:
        spec, variant = self.spec, self.variant
        (bd, bh, bw), lanes = variant.block, variant.lanes
        positions = (self.groups[0] * bd, self.groups[1] * bh, self.groups[2] * bw * variant.tile)
        extents = window_extents(spec, positions)

        def at(n, b, d, h, w, c, lane):  # type: ignore[no-untyped-def]
            f = b * lanes + lane
            channel = f // spec.group_filters * spec.group_channels + c

            def read(i: list[Expr]) -> Expr:
                index = (n, *i, channel) if spec.data_format == CHANNELS_LAST else (n, channel, *i)
                return widen(x[index], spec.dtype, self.acc)

            inside = [f < spec.filters] if spec.filters % lanes else []
            return zero_padded(spec, extents, (d, h, w), read, inside)

        return te.compute((spec.batch, self.blocks, *extents, spec.group_channels, lanes), at, name="gather")

    def _input(self, gather: te.Tensor) -> te.Tensor:
        spec, variant, m = self.spec, self.variant, self.variant.tile
        bd, bh, bw = variant.block
        window = window_extents(spec, (bd, bh, 1))[:2]

        def read(i, n, gd, gh, gw, b, _, d, h, t, c, lane):  # type: ignore[no-untyped-def]
            row = (gd * (bd * spec.strides[0]) + d, gh * (bh * spec.strides[1]) + h)
            return gather[(n, b, *row, (gw * bw + t) * m + i, c, lane)]

        tasks = (spec.batch, *self.groups, self.blocks)
        shape = (*tasks, self.frequencies, *window, bw, spec.group_channels, variant.lanes)
        return transform(self.acc, shape, "input", self.matrices.input, read, from_end=6)

    def _product(self, data: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        spec, variant = self.spec, self.variant
        bd, bh, bw = variant.block
        tap_d, tap_h = (te.reduce_axis((0, k), name=f"tap_{axis}") for k, axis in zip(spec.kernel, "dh", strict=False))
        channel = te.reduce_axis((0, spec.group_channels), name="channel")

        def at(n, gd, gh, gw, b, x, d, ho, hi, wo, wi, lane):  # type: ignore[no-untyped-def]
            i = d * spec.strides[0] + tap_d * spec.dilation[0]
            j = (ho * variant.rows + hi) * spec.strides[1] + tap_h * spec.dilation[1]
            value = data[n, gd, gh, gw, b, x, i, j, wo * variant.columns + wi, channel, lane]
            return te.sum(value * kernel[b, x, tap_d, tap_h, channel, lane], axis=[tap_d, tap_h, channel])

        tiles = (bh // variant.rows, variant.rows, bw // variant.columns, variant.columns)
        shape = (spec.batch, *self.groups, self.blocks, self.frequencies, bd, *tiles, variant.lanes)
        return te.compute(shape, at, name="product")

    def _output(self, product: te.Tensor) -> te.Tensor:
        def read(x, n, gd, gh, gw, b, d, ho, hi, wo, wi, _, lane):  # type: ignore[no-untyped-def]
            return product[n, gd, gh, gw, b, x, d, ho, hi, wo, wi, lane]

        *task, _, d, ho, hi, wo, wi, lane = (int(extent) for extent in product.shape)
        shape = (*task, d, ho, hi, wo, wi, self.variant.tile, lane)
        return transform(self.acc, shape, "output", self.matrices.output, read, from_end=2)

    def _out(self, sums: te.Tensor, bias: te.Tensor, residual: Residual) -> te.Tensor:
        """The output in whole register tiles; in channels_first, rows of each lane's filter."""
        last = self.spec.data_format == CHANNELS_LAST
        read, tiling = sums if last else self._transposed(sums), self._tiling()

        def at(*index):  # type: ignore[no-untyped-def]
            added = residual.at(*tiling.real(index))
            return finish(self.spec, read[index], bias[index[4], index[-1 if last else -2]], added)

        return te.compute(read.shape, at, name="out", varargs_names=index_names(read.shape))

    def _transposed(self, sums: te.Tensor) -> te.Tensor:
        """The sums of a register tile with its columns innermost."""
        *outer, wi, m, lanes = (int(extent) for extent in sums.shape)

        def at(*index):  # type: ignore[no-untyped-def]
            *position, lane, w = index
            return sums[(*position, w // m, w % m, lane)]

        shape = (*outer, lanes, wi * m)
        return te.compute(shape, at, name="transposed", varargs_names=index_names(shape))

    def _tiling(self) -> Tiling:
        """How the axes of :meth:`_out` make those of the real output."""
        variant, m = self.variant, self.variant.tile
        bd, bh, bw = variant.block
        d = (term(1, bd), term(5))
        h = (term(2, bh), term(6, variant.rows), term(7))
        w, block = (term(3, bw * m), term(8, variant.columns * m)), term(4, variant.lanes)
        if self.spec.data_format == CHANNELS_LAST:
            positions = (d, h, (*w, term(9, m), term(10)))
            return Tiling(self.spec.output_shape, ((term(0),), *positions, (block, term(11))))
        return Tiling(self.spec.output_shape, ((term(0),), (block, term(9)), d, h, (*w, term(10))))

    def _flags(self, sums: te.Tensor) -> te.Tensor:
        """A sum that is finite if and only if all its terms are; TVM would fold x * 0 and x - x to zero."""
        tiny = tirx.const(2.0**-64, self.acc)
        *task, d, ho, hi, wo, wi, m, lanes = (int(extent) for extent in sums.shape)
        within = [te.reduce_axis((0, extent), name=f"r{i}") for i, extent in enumerate((hi, wi, m))]

        def of_tile(*index):  # type: ignore[no-untyped-def]
            *at, i, j, lane = index
            rh, rw, ro = within
            return te.sum(sums[(*at, i, rh, j, rw, ro, lane)] * tiny, axis=within)

        shape = (*task, d, ho, wo, lanes)
        seen = te.compute(shape, of_tile, name="seen", varargs_names=index_names(shape))
        over = [te.reduce_axis((0, extent), name=f"t{i}") for i, extent in enumerate((d, ho, wo))]

        def of_task(*index):  # type: ignore[no-untyped-def]
            *at, lane = index
            return te.sum(seen[(*at, *over, lane)], axis=over)

        shape = (*task, lanes)
        return te.compute(shape, of_task, name="flags", varargs_names=index_names(shape))
