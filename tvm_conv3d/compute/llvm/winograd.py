"""N-dimensional Winograd convolution: gather, transform, product, inverse transform, store.

Along each axis the output is cut into tiles of m positions, computed by F(m, k) of Cook and Toom; axes nest and have
modes (:mod:`tvm_conv3d.compute.shared.winograd_axes`). A group of neighbouring tiles makes one task.

Stages, each a block that a schedule places:

gather                      zero-padded input positions of each part, phases and folded taps as channels, whole vectors
input_w, input_h, input_d   the input's transforms along each transformed axis, the last in the layout of the product
product                     for each of the frequencies, and each group, tiles x channels by channels x filters
output_d, output_h, output_w  the inverse transforms
transposed                      sums in rows of each filter, see :func:`transposes_sums`
out                         bias, activation and store
flags                       not finite where a sum is not: a Winograd tile spreads NaN and infinity over its positions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.llvm.variants import WinogradVariant
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import Matrix, transforms
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.compute.shared.packing import Weights, bias_in_blocks
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import finish
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.compute.shared.winograd_axes import axes_of, triple
from tvm_conv3d.compute.shared.winograd_packing import AXES, taps_of_phases, transformed_taps
from tvm_conv3d.compute.shared.winograd_stages import (
    Stage,
    expected_error,
    gathered,
    index_names,
    transform,
)
from tvm_conv3d.spec import CHANNELS_LAST, Triple

Expr = Any  # a TVM expression; its classes are not public names


def groups_of_part(spec: CanonicalSpec, variant: WinogradVariant) -> Triple:
    """Groups of tiles of one part along each axis of `spec`."""
    axes = axes_of(spec, variant.modes)
    sides = zip(axes.part_size(spec.out_size), variant.tile, variant.block, strict=True)
    return triple([-(-o // (m * b)) for o, m, b in sides])


def side_by_side(spec: CanonicalSpec, variant: WinogradVariant) -> int:
    """Channels of `spec` that are gathered as they lie in the input."""
    if variant.interleaved > 1:
        return 1
    return spec.channels if math.prod(axes_of(spec, variant.modes).phases) == 1 else spec.group_channels


def transposes_sums(spec: CanonicalSpec, variant: WinogradVariant) -> bool:
    """Whether there is a stage `transposed`: in channels_first, where each vector holds neighbouring filters."""
    each_whole = spec.groups == 1 or spec.group_filters % min(spec.group_filters, variant.lanes) == 0
    return spec.data_format != CHANNELS_LAST and variant.interleaved == 1 and each_whole


def declare(spec: CanonicalSpec, variant: WinogradVariant) -> Declaration:
    """The TE declaration; arguments: input, transformed weights, packed bias, output, flags.

    Flags are elements of the accumulator's type, all finite when every sum was; their shape is (batch, parts of
    dilated axes, groups of tiles along depth, height, width, positions along the longest side of a tile, lanes).

    Raises:
        ValueError: `variant` does not suit the spec.
    """
    return _Builder(spec, variant).declaration()


def declare_packing(spec: CanonicalSpec, variant: WinogradVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (frequencies along depth, height, width, blocks of filters, channels of a group, vectors, lanes).
        Bias (filters in whole vectors,).
    """
    axes, filters = axes_of(spec, variant.modes), FilterPacking.of(spec, variant)
    read = taps_of_phases(spec, axes, weights)

    def taps_at(taps, block, channel, vector, lane):  # type: ignore[no-untyped-def]
        return read(taps, channel, *filters.filter_at(block // filters.blocks, block % filters.blocks, vector, lane))

    matrices = [transforms(*size).kernel for size in zip(variant.tile, axes.taps, axes.strides, strict=True)]
    inner = (filters.sharing * filters.blocks, axes.channels // spec.groups, variant.vectors, variant.lanes)
    _, sums = transformed_taps(taps_at, axes.taps, matrices, inner)
    kernel = te.compute(
        sums.shape, lambda *i: sums(*i).astype(spec.accumulator), name=PACKED_KERNEL, varargs_names=AXES
    )
    return kernel, bias_in_blocks(weights, spec.filters, (-(-spec.filters // variant.lanes) * variant.lanes,))


def error_bound(spec: CanonicalSpec, variant: WinogradVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    axes = axes_of(spec, variant.modes)
    return expected_error(spec, axes.channels // spec.groups, zip(variant.tile, axes.taps, axes.strides, strict=True))


class _Builder:
    """The stages of one declaration."""

    def __init__(self, spec: CanonicalSpec, variant: WinogradVariant) -> None:
        self.spec = spec
        self.variant = variant
        self.axes = axes_of(spec, variant.modes)
        self.acc = spec.accumulator
        self.frequencies = self.axes.cells(variant.tile)
        self.groups_of_part = groups_of_part(spec, variant)
        #: axes that are computed in parts
        self.parted = [axis for axis in range(3) if self.axes.parts[axis] > 1]
        #: extents of what numbers the tasks: batch, parts of parted axes, groups of tiles
        self.outer = (spec.batch, *(self.axes.parts[axis] for axis in self.parted), *self.groups_of_part)
        self.tiles = math.prod(variant.block)
        self.channel_blocks = -(-self.axes.channels // variant.lanes)
        self.filters = FilterPacking.of(spec, variant)
        self.filter_blocks = self.filters.sharing * self.filters.blocks
        #: channels that a sum runs over
        self.group_channels = self.axes.channels // spec.groups
        sizes = zip(variant.tile, self.axes.taps, self.axes.strides, strict=True)
        self.matrices = [transforms(*size) for size in sizes]
        #: gathered positions from tile to tile, per axis
        self.steps = triple([m * stride for m, stride in zip(variant.tile, self.axes.strides, strict=True)])
        #: axes with a transform
        self.transformed = [n > 1 for n in self.frequencies]

    def declaration(self) -> Declaration:
        spec, variant = self.spec, self.variant
        x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
        shape = (*self.frequencies, self.filter_blocks, self.group_channels, variant.vectors, variant.lanes)
        kernel = te.placeholder(shape, self.acc, name="kernel")
        bias = te.placeholder((-(-spec.filters // variant.lanes) * variant.lanes,), self.acc, name="bias")
        product = self._product(self._input(self._gather(x)), kernel)
        sums = self._output(product)
        by_position = self._transposed(sums) if transposes_sums(spec, variant) else self._positions_of(sums)
        residual = Residual(spec, self._declared_shape() if self._tiling() is None else spec.output_shape)
        out = self._out(by_position, bias, residual)
        return Declaration((x, kernel, bias, *residual.tensors, out, self._flags(sums)), self._tiling())

    def _gather(self, x: te.Tensor) -> te.Tensor:
        spec, axes, lanes = self.spec, self.axes, self.variant.lanes
        sides = zip(self.groups_of_part, self.variant.block, self.variant.tile, strict=True)
        extents = axes.cells([g * b * m for g, b, m in sides])
        padded = self.channel_blocks * lanes
        read = gathered(spec, axes, extents, padded, x, self.variant.interleaved)

        def at(n, a, b, g, d, h, w, c):  # type: ignore[no-untyped-def]
            return read(n, (a, b, g), (d, h, w), c)

        return te.compute((spec.batch, *axes.parts, *extents, padded), at, name="gather")

    def _input(self, gather: te.Tensor) -> te.Tensor:
        """The input's transforms, along width, height and depth; the last in the layout of the product."""
        (sd, sh, sw), (_, bh, bw) = self.steps, self.variant.block
        lanes, (ad, ah, aw) = self.variant.lanes, self.frequencies
        sides = zip(self.variant.block, self.variant.tile, strict=True)
        rows_d, rows_h, _ = self.axes.cells([b * m for b, m in sides])
        inner = (self.channel_blocks, lanes)

        def along_w(*index):  # type: ignore[no-untyped-def]
            *at, i, j, _, tw, c, lane = index
            return self._position(gather, at, (i, j, tw), c * lanes + lane)

        if self.transformed[2]:

            def wide(k, *index):  # type: ignore[no-untyped-def]
                *at, i, j, _, tw, c, lane = index
                return self._position(gather, at, (i, j, tw * sw + k), c * lanes + lane)

            along_w = self._transform(
                (*self.outer, rows_d, rows_h, aw, bw, *inner), "input_w", self.matrices[2].input, wide, from_end=4
            )

        def along_h(*index):  # type: ignore[no-untyped-def]
            *at, i, th, _, x, tw, c, lane = index
            return along_w(*at, i, th, x, tw, c, lane)

        if self.transformed[1]:

            def high(j, *index):  # type: ignore[no-untyped-def]
                *at, i, th, _, x, tw, c, lane = index
                return along_w(*at, i, th * sh + j, x, tw, c, lane)

            along_h = self._transform(
                (*self.outer, rows_d, bh, ah, aw, bw, *inner), "input_h", self.matrices[1].input, high, from_end=5
            )

        def deep(i, *index):  # type: ignore[no-untyped-def]
            *at, _, y, x, c, t, lane = index
            return along_h(*at, t // (bh * bw) * sd + i, t // bw % bh, y, x, t % bw, c, lane)

        shape = (*self.outer, ad, ah, aw, self.channel_blocks, self.tiles, lanes)
        if self.transformed[0]:
            return self._transform(shape, "input_d", self.matrices[0].input, deep, from_end=6).tensor
        return te.compute(shape, lambda *index: deep(0, *index), name="input_d", varargs_names=index_names(shape))

    def _position(self, gather: te.Tensor, at: Sequence[Expr], within: Sequence[Expr], channel: Expr) -> Expr:
        """A gathered position of the task `at`."""
        n, *parts_groups = at
        parts = [tirx.const(0, "int32")] * 3
        for axis, part in zip(self.parted, parts_groups, strict=False):
            parts[axis] = part
        sides = zip(parts_groups[len(self.parted) :], self.variant.block, self.steps, within, strict=True)
        return gather[(n, *parts, *(group * (b * step) + i for group, b, step, i in sides), channel)]

    def _product(self, data: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        lanes, vectors, together = self.variant.lanes, self.variant.vectors, self.variant.interleaved
        channel = te.reduce_axis((0, self.group_channels), name="channel")

        def at(*index):  # type: ignore[no-untyped-def]
            *outer, e, y, x, f, t, lane = index
            number, each = channel, lanes // together
            if self.filters.sharing > 1:
                number += f // (self.filters.blocks * vectors) * self.group_channels
            place = number % each * together
            value = data[(*outer, e, y, x, number // each, t, place + lane % together if together > 1 else place)]
            weight = kernel[e, y, x, f // vectors, channel, f % vectors, lane]
            return te.sum(value * weight, axis=[channel])

        shape = (*self.outer, *self.frequencies, self.filter_blocks * vectors, self.tiles, lanes)
        return te.compute(shape, at, name="product", varargs_names=index_names(shape))

    def _output(self, product: te.Tensor) -> te.Tensor | Callable[..., Expr]:
        """The inverse transforms along depth, height and width: (..., md, mh, mw, tiles, filter vectors, lanes)."""
        inner = (self.tiles, self.filter_blocks * self.variant.vectors, self.variant.lanes)
        extents = list(self.frequencies)

        def current(*index):  # type: ignore[no-untyped-def]
            *outer, t, f, lane = index
            return product[(*outer, f, t, lane)]

        for axis, name in enumerate(("output_d", "output_h", "output_w")):
            if self.transformed[axis]:
                extents[axis] = self.variant.tile[axis]
                place = axis - 6

                def read(i, *index, before=current, place=place):  # type: ignore[no-untyped-def]
                    return before(*index[:place], i, *index[place + 1 :])

                current = self._transform(
                    (*self.outer, *extents, *inner), name, self.matrices[axis].output, read, from_end=-place
                )
        return current

    def _transform(
        self, shape: tuple[int, ...], name: str, matrix: Matrix, read: Callable[..., Expr], from_end: int
    ) -> Stage:
        """sum_i matrix[row, i] * read(i, ...), where the row is the index that is `from_end` before the end."""
        return Stage(transform(self.acc, shape, name, matrix, read, from_end))

    def _positions_of(self, sums: Callable[..., Expr]) -> Callable[..., Expr]:
        """The sums by task, position within it, vector of filters and lane."""
        (md, mh, mw), (_, bh, bw) = self.variant.tile, self.variant.block

        def at(*index):  # type: ignore[no-untyped-def]
            *outer, d, h, w, vector, lane = index
            t = (d // md * bh + h // mh) * bw + w // mw
            return sums(*outer, d % md, h % mh, w % mw, t, vector, lane)

        return at

    def _transposed(self, sums: Callable[..., Expr]) -> Callable[..., Expr]:
        """:meth:`_cells_of` as a tensor with rows of each filter."""
        at, lanes = self._positions_of(sums), self.variant.lanes
        depth, height, width = (b * m for b, m in zip(self.variant.block, self.variant.tile, strict=True))
        shape = (*self.outer, depth, height, self.filter_blocks * self.variant.vectors, lanes, width)

        def row(*index):  # type: ignore[no-untyped-def]
            *position, vector, lane, w = index
            return at(*position, w, vector, lane)

        transposed = te.compute(shape, row, name="transposed", varargs_names=index_names(shape))

        def read(*index):  # type: ignore[no-untyped-def]
            *position, w, vector, lane = index
            return transposed(*position, vector, lane, w)

        return read

    def _sum_at(self, by_position: Callable[..., Expr], n: Expr, positions: Sequence[Expr], f: Expr) -> Expr:
        """The sum of an output position; parted axes have two indices, that within its part and the part."""
        parts, groups, within = [], [], []
        left = list(positions)
        for axis, (m, b) in enumerate(zip(self.variant.tile, self.variant.block, strict=True)):
            o = left.pop(0)
            if axis in self.parted:
                parts.append(left.pop(0))
            groups.append(o // (m * b))
            within.append(o % (m * b))
        if self.filters.sharing == 1:
            return by_position(n, *parts, *groups, *within, *self.filters.place(f))
        vector, lane = self.filters.place(f % self.filters.shared_filters)
        vector += f // self.filters.shared_filters * (self.filters.blocks * self.variant.vectors)
        return by_position(n, *parts, *groups, *within, vector, lane)

    def _out(self, by_position: Callable[..., Expr], bias: te.Tensor, residual: Residual) -> te.Tensor:
        tiling = self._tiling()

        def at(*index):  # type: ignore[no-untyped-def]
            n, *positions, f = index if self.spec.data_format == CHANNELS_LAST else (index[0], *index[2:], index[1])
            added = residual.at(*(index if tiling is None else tiling.real(index)))
            return finish(self.spec, self._sum_at(by_position, n, positions, f), bias[f], added)

        shape = self._declared_shape()
        return te.compute(shape, at, name="out", varargs_names=index_names(shape))

    def _declared_shape(self) -> tuple[int, ...]:
        """That of the output as declared; without a tiling, its memory is that of the output."""
        size = [extent for axis in range(3) for extent in self._declared(axis)]
        batch, filters = self.spec.batch, self.spec.filters
        return (batch, *size, filters) if self.spec.data_format == CHANNELS_LAST else (batch, filters, *size)

    def _declared(self, axis: int) -> tuple[int, ...]:
        """Extents of the output's axis as declared: of parted ones the positions of a part, and the parts."""
        size = self.axes.part_size(self.spec.out_size)[axis]
        return (size, self.axes.parts[axis]) if axis in self.parted else (size,)

    def _tiling(self) -> Tiling | None:
        """How the declared output makes the real one, where its parts differ in size."""
        if not any(o % parts for o, parts in zip(self.spec.out_size, self.axes.parts, strict=True)):
            return None
        axes: list[tuple[Term, ...]] = []
        declared = 0
        for parts in (1, *self.axes.parts, 1) if self.spec.data_format == CHANNELS_LAST else (1, 1, *self.axes.parts):
            axes.append((term(declared, parts), term(declared + 1)) if parts > 1 else (term(declared),))
            declared += len(axes[-1])
        return Tiling(self.spec.output_shape, tuple(axes))

    def _flags(self, sums: Callable[..., Expr]) -> te.Tensor:
        """A sum that is finite if and only if all its terms are; TVM would fold x * 0 and x - x to zero."""
        tiny = tirx.const(2.0**-64, self.acc)
        tile = list(self.variant.tile)
        # sums side by side, so that an addition need not wait for the one before
        apart = tile.index(max(tile))
        beside = tile.pop(apart)
        extents = (*tile, self.tiles, self.filter_blocks * self.variant.vectors)
        over = [te.reduce_axis((0, extent), name=f"r{i}") for i, extent in enumerate(extents)]

        def at(*index):  # type: ignore[no-untyped-def]
            *outer, position, lane = index
            positions: list[Expr] = list(over[:2])
            positions.insert(apart, position)
            return te.sum(sums(*outer, *positions, *over[2:], lane) * tiny, axis=over)

        shape = (*self.outer, beside, self.variant.lanes)
        return te.compute(shape, at, name="flags", varargs_names=index_names(shape))
