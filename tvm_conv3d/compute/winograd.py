"""N-dimensional Winograd convolution: gather, transform, product, inverse transform, store.

Along each axis the output is cut into tiles of m cells, computed by F(m, k) of Cook and Toom
(:mod:`tvm_conv3d.compute.cook_toom`); axes nest, as the transforms are linear. A group of neighbouring tiles makes one
task. Axes have a mode:

plain     F(m, k); stride 1. With k = 1 the axis needs no transform.
strided   space to depth: the stride's phases become channels, leaving F(m, ceil(k / stride)) at stride 1.
folded    the taps become channels (im2col along this axis): any stride and dilation, no transform.

Stages, each a block that a schedule places:

gather                      zero-padded input cells, phases and folded taps as channels, whole vectors of channels
input_w, input_h, input_d   the input's transforms along each transformed axis, the last in the layout of the product
product                     for each of the frequencies a matrix product: tiles x channels by channels x filters
output_d, output_h, output_w  the inverse transforms
out                         bias, activation and store
flags                       not finite where a sum is not: a Winograd tile spreads NaN and infinity over its cells
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.compute.cook_toom import Matrix, amplification, transforms
from tvm_conv3d.compute.declaration import Declaration
from tvm_conv3d.compute.elements import storage_dtype, widen
from tvm_conv3d.compute.stages import error_of_sums, finish, zero_padded
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec, Triple

PLAIN, STRIDED, FOLDED = "p", "s", "f"

#: Measured errors of random layers exceed the estimate from the matrices by up to this (kernels of 5 to 7).
_MARGIN = 1.25

Expr = Any  # a TVM expression; its classes are not public names


@dataclass(frozen=True)
class WinogradVariant:
    """What a Winograd convolution is cut into; one TE declaration each.

    Attributes:
        modes: of depth, height, width, a letter each: "p", "s" or "f".
        tile: output cells of a tile along each axis; 1 along axes without a transform.
        block: tiles of a task along each axis.
        lanes: channels, and filters, in one vector register.
        vectors: vectors of filters in the product's register tile.
        columns: tiles in the product's register tile; divides the tiles of a task.
    """

    modes: str
    tile: Triple
    block: Triple
    lanes: int
    vectors: int
    columns: int


@dataclass(frozen=True)
class Axes:
    """A convolution after strides and folded taps have become channels.

    Attributes:
        taps: of the remaining kernel, per axis.
        phases: channels that one input cell's channels became, per axis.
        step: input cells between gathered cells, per axis.
        spread: input cells between phases, per axis.
        channels: of a gathered cell, before padding to whole vectors.
    """

    taps: Triple
    phases: Triple
    step: Triple
    spread: Triple
    channels: int


def axes_of(spec: Conv3DSpec, modes: str) -> Axes:
    """How `modes` change the axes of `spec`.

    Raises:
        ValueError: a mode does not suit its axis: plain needs stride and dilation 1, strided needs dilation 1.
    """
    taps, phases, spread = [], [], []
    for mode, kernel, stride, dilation in zip(modes, spec.kernel, spec.strides, spec.dilation, strict=True):
        if (mode == PLAIN and stride > 1) or (mode in (PLAIN, STRIDED) and dilation > 1):
            raise ValueError(f"Mode {mode!r} needs another stride or dilation. Received: {modes} for {spec.key()}")
        taps.append({PLAIN: kernel, STRIDED: -(-kernel // stride), FOLDED: 1}[mode])
        phases.append({PLAIN: 1, STRIDED: stride, FOLDED: kernel}[mode])
        spread.append(dilation if mode == FOLDED else 1)
    channels = spec.channels * math.prod(phases)
    return Axes(_triple(taps), _triple(phases), spec.strides, _triple(spread), channels)


def declare(spec: Conv3DSpec, variant: WinogradVariant) -> Declaration:
    """The TE declaration; arguments: input, transformed weights, packed bias, output, flags.

    Flags are numbers of the accumulator's type, all finite when every sum was; their shape is (batch, groups of
    tiles along depth, height, width, lanes).

    Raises:
        ValueError: the spec has groups, or `variant` does not suit it.
    """
    if spec.groups != 1:
        raise ValueError(f"Winograd takes one group. Received: {spec.key()}")
    return _Builder(collapse(spec), variant).declaration()


def pack_kernel(spec: Conv3DSpec, variant: WinogradVariant, kernel: np.ndarray) -> np.ndarray:
    """Weights (kd, kh, kw, channels, filters), transformed in float64, as the product reads them.

    Returns:
        (frequencies along depth, height, width, blocks of filters, channels, vectors, lanes).
    """
    s = collapse(spec)
    axes = axes_of(s, variant.modes)
    sizes = tuple(t * p for t, p in zip(axes.taps, axes.phases, strict=True))
    padded = np.zeros((*sizes, spec.channels, spec.filters))
    kd, kh, kw = spec.kernel
    padded[:kd, :kh, :kw] = kernel
    split = padded.reshape(*(n for pair in zip(axes.taps, axes.phases, strict=True) for n in pair), *padded.shape[3:])
    taps = split.transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(*axes.taps, axes.channels, spec.filters)
    for axis, (m, r) in enumerate(zip(variant.tile, axes.taps, strict=True)):
        matrix = np.array(transforms(m, r).kernel, dtype=np.float64)
        # not by BLAS, whose locks a forked child inherits and waits for
        name = "dhwcf"[axis]
        taps = np.einsum(f"n{name},dhwcf->{'dhwcf'.replace(name, 'n')}", matrix, taps)
    width = variant.vectors * variant.lanes
    blocks = -(-spec.filters // width)
    whole = np.zeros((*taps.shape[:4], blocks * width), spec.accumulator)
    whole[..., : spec.filters] = taps
    blocked = whole.reshape(*whole.shape[:4], blocks, variant.vectors, variant.lanes)
    return np.ascontiguousarray(np.moveaxis(blocked, 4, 3))


def pack_bias(spec: Conv3DSpec, variant: WinogradVariant, bias: np.ndarray | None) -> np.ndarray:
    """Bias (filters,), zeros where there is none."""
    return np.zeros(spec.filters, spec.accumulator) if bias is None else bias.astype(spec.accumulator)


def error_bound(spec: Conv3DSpec, variant: WinogradVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    axes = axes_of(collapse(spec), variant.modes)
    factor = math.prod(amplification(m, t) for m, t in zip(variant.tile, axes.taps, strict=True))
    return error_of_sums(spec, axes.channels, _MARGIN * factor)


class _Builder:
    """The stages of one declaration; `spec` has its axes collapsed."""

    def __init__(self, spec: Conv3DSpec, variant: WinogradVariant) -> None:
        self.spec = spec
        self.variant = variant
        self.axes = axes_of(spec, variant.modes)
        self.acc = spec.accumulator
        self.frequencies = tuple(m + t - 1 for m, t in zip(variant.tile, self.axes.taps, strict=True))
        tiles = [-(-o // m) for o, m in zip(spec.out_size, variant.tile, strict=True)]
        self.groups = tuple(-(-t // b) for t, b in zip(tiles, variant.block, strict=True))
        self.tiles = math.prod(variant.block)
        self.channel_blocks = -(-self.axes.channels // variant.lanes)
        width = variant.vectors * variant.lanes
        self.filter_blocks = -(-spec.filters // width)
        self.matrices = [transforms(m, t) for m, t in zip(variant.tile, self.axes.taps, strict=True)]
        #: axes with a transform
        self.transformed = [m + t > 2 for m, t in zip(variant.tile, self.axes.taps, strict=True)]

    def declaration(self) -> Declaration:
        spec, variant = self.spec, self.variant
        x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
        shape = (*self.frequencies, self.filter_blocks, self.axes.channels, variant.vectors, variant.lanes)
        kernel = te.placeholder(shape, self.acc, name="kernel")
        bias = te.placeholder((spec.filters,), self.acc, name="bias")
        product = self._product(self._input(self._gather(x)), kernel)
        sums = self._output(product)
        return Declaration((x, kernel, bias, self._out(sums, bias), self._flags(sums)))

    def _gather(self, x: te.Tensor) -> te.Tensor:
        spec, axes, lanes = self.spec, self.axes, self.variant.lanes
        extents = [
            g * b * m + t - 1
            for g, b, m, t in zip(self.groups, self.variant.block, self.variant.tile, axes.taps, strict=True)
        ]
        # as if the input were padded so that every gathered cell and phase exists
        reach = [
            (e - 1) * step + (p - 1) * spread + 1
            for e, step, p, spread in zip(extents, axes.step, axes.phases, axes.spread, strict=True)
        ]
        pd, ph, pw = axes.phases

        def at(n, d, h, w, c):  # type: ignore[no-untyped-def]
            phase = (c // (spec.channels * pw * ph), c // (spec.channels * pw) % ph, c // spec.channels % pw)
            where = zip((d, h, w), axes.step, phase, axes.spread, strict=True)
            cell = [i * step + q * spread for i, step, q, spread in where]
            channel = c % spec.channels if pd * ph * pw > 1 else c

            def read(index: list[Expr]) -> Expr:
                position = (n, *index, channel) if spec.data_format == CHANNELS_LAST else (n, channel, *index)
                return widen(x[position], spec.dtype, self.acc)

            inside = [c < axes.channels] if axes.channels % lanes else []
            return zero_padded(spec, reach, cell, read, inside)

        return te.compute((spec.batch, *extents, self.channel_blocks * lanes), at, name="gather")

    def _input(self, gather: te.Tensor) -> te.Tensor:
        """The input's transforms, along width, height and depth; the last in the layout of the product."""
        (md, mh, mw), (bd, bh, bw) = self.variant.tile, self.variant.block
        lanes, (ad, ah, aw) = self.variant.lanes, self.frequencies
        rows_d, rows_h = bd * md + self.axes.taps[0] - 1, bh * mh + self.axes.taps[1] - 1
        outer = (self.spec.batch, *self.groups)
        inner = (self.channel_blocks, lanes)

        def cell(n, a, b, g, i, j, k, c, lane):  # type: ignore[no-untyped-def]
            return gather[n, a * (bd * md) + i, b * (bh * mh) + j, g * (bw * mw) + k, c * lanes + lane]

        def along_w(n, a, b, g, i, j, x, tw, c, lane):  # type: ignore[no-untyped-def]
            return cell(n, a, b, g, i, j, tw, c, lane)

        if self.transformed[2]:
            wide = self._transform(
                (*outer, rows_d, rows_h, aw, bw, *inner),
                "input_w",
                self.matrices[2].input,
                lambda k, n, a, b, g, i, j, x, tw, c, lane: cell(n, a, b, g, i, j, tw * mw + k, c, lane),
                frequency=6,
            )
            along_w = wide

        def along_h(n, a, b, g, i, th, y, x, tw, c, lane):  # type: ignore[no-untyped-def]
            return along_w(n, a, b, g, i, th, x, tw, c, lane)

        if self.transformed[1]:
            high = self._transform(
                (*outer, rows_d, bh, ah, aw, bw, *inner),
                "input_h",
                self.matrices[1].input,
                lambda j, n, a, b, g, i, th, y, x, tw, c, lane: along_w(n, a, b, g, i, th * mh + j, x, tw, c, lane),
                frequency=6,
            )
            along_h = high

        def place(t: Expr) -> tuple[Expr, Expr, Expr]:
            return t // (bh * bw), t // bw % bh, t % bw

        shape = (*outer, ad, ah, aw, self.channel_blocks, self.tiles, lanes)
        if self.transformed[0]:

            def deep(i, n, a, b, g, e, y, x, c, t, lane):  # type: ignore[no-untyped-def]
                td, th, tw = place(t)
                return along_h(n, a, b, g, td * md + i, th, y, x, tw, c, lane)

            return self._transform(shape, "input_d", self.matrices[0].input, deep, frequency=4).tensor

        def copied(n, a, b, g, e, y, x, c, t, lane):  # type: ignore[no-untyped-def]
            td, th, tw = place(t)
            return along_h(n, a, b, g, td, th, y, x, tw, c, lane)

        return te.compute(shape, copied, name="input_d")

    def _product(self, data: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        lanes, vectors = self.variant.lanes, self.variant.vectors
        channel = te.reduce_axis((0, self.axes.channels), name="channel")

        def at(n, a, b, g, e, y, x, f, t, lane):  # type: ignore[no-untyped-def]
            value = data[n, a, b, g, e, y, x, channel // lanes, t, channel % lanes]
            weight = kernel[e, y, x, f // vectors, channel, f % vectors, lane]
            return te.sum(value * weight, axis=[channel])

        shape = (self.spec.batch, *self.groups, *self.frequencies, self.filter_blocks * vectors, self.tiles, lanes)
        return te.compute(shape, at, name="product")

    def _output(self, product: te.Tensor) -> te.Tensor | Callable[..., Expr]:
        """The inverse transforms along depth, height and width: (..., md, mh, mw, tiles, filter vectors, lanes)."""
        outer = (self.spec.batch, *self.groups)
        inner = (self.tiles, int(product.shape[7]), self.variant.lanes)
        extents = list(self.frequencies)

        def current(n, a, b, g, e, y, x, t, f, lane):  # type: ignore[no-untyped-def]
            return product[n, a, b, g, e, y, x, f, t, lane]

        for axis, name in enumerate(("output_d", "output_h", "output_w")):
            if self.transformed[axis]:
                extents[axis] = self.variant.tile[axis]

                def read(i, *index, before=current, axis=axis):  # type: ignore[no-untyped-def]
                    return before(*index[: 4 + axis], i, *index[5 + axis :])

                matrix = self.matrices[axis].output
                current = self._transform((*outer, *extents, *inner), name, matrix, read, frequency=4 + axis)
        return current

    def _transform(
        self, shape: tuple[int, ...], name: str, matrix: Matrix, read: Callable[..., Expr], frequency: int
    ) -> _Stage:
        """sum_i matrix[row, i] * read(i, ...), where the row is the index number `frequency`."""
        step = te.reduce_axis((0, len(matrix[0])), name="step")

        def entry(row: Expr) -> Expr:
            value = tirx.const(0, self.acc)
            for r, entries in enumerate(matrix):
                for i, number in enumerate(entries):
                    if number:
                        here = tirx.all(row == r, step == i)
                        value = tirx.Select(here, tirx.const(float(number), self.acc), value)
            return value

        def at(*index: Expr) -> Expr:
            return te.sum(read(step, *index) * entry(index[frequency]), axis=[step])

        names = [f"i{number}" for number in range(len(shape))]
        return _Stage(te.compute(shape, at, name=name, varargs_names=names))

    def _sum_at(self, sums: Callable[..., Expr], n: Expr, cell: tuple[Expr, ...], f: Expr) -> Expr:
        groups, tiles, cells = [], [], []
        for o, m, b in zip(cell, self.variant.tile, self.variant.block, strict=True):
            groups.append(o // (m * b))
            tiles.append(o // m % b)
            cells.append(o % m)
        _, bh, bw = self.variant.block
        t = (tiles[0] * bh + tiles[1]) * bw + tiles[2]
        return sums(n, *groups, *cells, t, f // self.variant.lanes, f % self.variant.lanes)

    def _out(self, sums: Callable[..., Expr], bias: te.Tensor) -> te.Tensor:
        def last(n, d, h, w, f):  # type: ignore[no-untyped-def]
            return finish(self.spec, self._sum_at(sums, n, (d, h, w), f), bias[f])

        if self.spec.data_format == CHANNELS_LAST:
            return te.compute(self.spec.output_shape, last, name="out")
        return te.compute(self.spec.output_shape, lambda n, f, d, h, w: last(n, d, h, w, f), name="out")

    def _flags(self, sums: Callable[..., Expr]) -> te.Tensor:
        """A sum that is finite if and only if all its terms are; TVM would fold x * 0 and x - x to zero."""
        tiny = tirx.const(2.0**-64, self.acc)
        md, mh, mw = self.variant.tile
        vectors = self.filter_blocks * self.variant.vectors
        over = [te.reduce_axis((0, extent), name=f"r{i}") for i, extent in enumerate((md, mh, mw, self.tiles, vectors))]

        def at(n, a, b, g, lane):  # type: ignore[no-untyped-def]
            return te.sum(sums(n, a, b, g, *over, lane) * tiny, axis=over)

        return te.compute((self.spec.batch, *self.groups, self.variant.lanes), at, name="flags")


@dataclass(frozen=True)
class _Stage:
    """A tensor, read by calling it."""

    tensor: te.Tensor

    def __call__(self, *index: Expr) -> Expr:
        return self.tensor[index]


def _triple(values: Any) -> Triple:
    first, second, third = values
    return int(first), int(second), int(third)
