"""Winograd convolution on a GPU: a kernel that transforms the input, one of matrix products, one that transforms back.

Axes have the modes of :mod:`tvm_conv3d.compute.shared.winograd_axes`. Depth may go without a transform, its taps summed
by the product: a layer of 3x3x3 in tiles of 1x4x4 transforms each slice once, in two dimensions. What lies between the
kernels is kept in the GPU's memory.

Stages, each a block that a schedule places; :mod:`tvm_conv3d.compute.cuda.winograd_planes` has others:

vectors                    in channels_first the input under a tile, from whole vectors' first positions to their last
window                     input positions of a tile, zeros outside of the input included
input_w, input_h, input_d  the input's transforms along each transformed axis
data                       kept: (frequencies, channels, rows of tiles, tiles)
gather                     a product's step of it
product                    for each frequency, and tap of an untransformed depth, channels by filters
sums                       kept: the products, in their tiles
spectrum                   the sums of a tile of the output
output_d, output_h, output_w  the inverse transforms
flag, bad                  whether a sum of the tile is not finite: transforms spread NaN and infinity over the tile
direct                     where it is bad: the tile's positions by the definition, from weights as they were
tile                       bias and activation
out                        the store in the user's layout
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te, tirx

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import LANES, along_width, by_planes, extents_of
from tvm_conv3d.compute.cuda.winograd_kernel import declare_packing, plain_from
from tvm_conv3d.compute.cuda.winograd_planes import Planes
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import Transforms, transforms
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import finish, zero_outside
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.compute.shared.winograd_stages import (
    expected_error,
    gathered,
    index_names,
    transform,
)
from tvm_conv3d.spec import CHANNELS_LAST

__all__ = ["WinogradGemmVariant", "declare", "declare_packing", "error_bound"]

Expr = Any  # a TVM expression; its classes are not public names


def declare(spec: CanonicalSpec, variant: WinogradGemmVariant) -> Declaration:
    """The TE declaration; arguments: input, packed weights, packed bias, output.

    Raises:
        ValueError: the spec has groups or another type than float32, or `variant` does not suit it.
    """
    if spec.groups != 1 or spec.dtype != "float32":
        raise ValueError(f"Winograd takes one group of float32 on GPUs. Received: {spec.key()}")
    return _Builder(spec, variant).declaration()


def error_bound(spec: CanonicalSpec, variant: WinogradGemmVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    e = extents_of(spec, variant)
    pairs = [(m, t) for m, t in zip(variant.tile, e.axes.taps, strict=True) if m > 1]
    return expected_error(spec, e.axes.channels * e.taps, pairs, on_gpu=True)


class _Builder:
    """The stages of one declaration."""

    def __init__(self, spec: CanonicalSpec, variant: WinogradGemmVariant) -> None:
        self.spec = spec
        self.variant = variant
        self.e = extents_of(spec, variant)
        self.axes = self.e.axes
        self.acc = spec.accumulator
        self.last = spec.data_format == CHANNELS_LAST
        self.padded_channels = self.e.steps * variant.step
        #: neighbouring positions of the input, and of the output, that a thread moves at once
        self.reads, self.stores = (along_width(spec, variant, size[2]) for size in (spec.size, spec.out_size))
        self.planes = Planes(spec, variant) if by_planes(spec, variant) else None

    def declaration(self) -> Declaration:
        spec, variant, e = self.spec, self.variant, self.e
        x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
        shape = (plain_from(e) + math.prod(self.axes.taps), e.filter_blocks, self.padded_channels, variant.filters)
        kernel = te.placeholder(shape, self.acc, name="kernel")
        bias = te.placeholder((e.filter_blocks * variant.filters,), self.acc, name="bias")
        input_at = self._input_at(x)
        data = self._data(x, input_at)
        sums = self._sums(self._product(data, kernel))
        totals = self._totals(sums)
        bad = self._bad(totals)
        tiling = self._tiling()
        residual = Residual(spec, tiling.shape)
        out = self._out(totals, bad, self._direct(input_at, kernel, bad), bias, residual)
        tensors = (x, kernel, bias, *residual.tensors, out)
        return Declaration(tensors, tiling, (data, sums), aligned=True)

    def _matrices(self, axis: int) -> Transforms:
        """Of a transformed axis."""
        return transforms(self.variant.tile[axis], self.axes.taps[axis])

    def _positions(self) -> list[int]:
        """Of a part that windows reach, per axis; vectors of tiles may reach beyond the last."""
        e, variant = self.e, self.variant
        high = -(-e.slice // e.tiles[2]) * variant.tile[1]
        cells = (e.tiles[0] * variant.tile[0], high, e.tiles[2] * variant.tile[2])
        return [o + t - 1 for o, t in zip(cells, self.axes.taps, strict=True)]

    def _input_at(self, x: te.Tensor) -> Callable[..., Expr]:
        """(sample, part, position of the part, channel) -> input."""
        return gathered(self.spec, self.axes, self._positions(), self.padded_channels, x)

    def _place(self, plane: Expr) -> tuple[Expr, list[Expr]]:
        """Sample and part of a plane."""
        parts: list[Expr] = []
        for extent in reversed(self.axes.parts):
            parts.insert(0, plane % extent if extent > 1 else tirx.const(0, "int32"))
            plane = plane // extent if extent > 1 else plane
        return plane, parts

    def _row(self, row: Expr, rows: int) -> tuple[Expr, list[Expr], Expr]:
        """Sample, part, and number along depth of a row of tiles, of which each plane has `rows`."""
        beside = self.planes.parts if self.planes else 1
        if beside == 1:
            return *self._place(row // rows), row % rows
        return *self._place(row // (rows * beside) * beside + row % beside), row // beside % rows

    def _data(self, x: te.Tensor, input_at: Callable[..., Expr]) -> te.Tensor:
        """The input's transforms, along width, height and depth."""
        e = self.e
        if self.planes:
            planes, slab = self.planes, self.planes.slab(x, self.padded_channels, self._place)
            return self._transformed(lambda *at: planes.window(slab, *at), planes.data_shape)
        vectors = self._vectors(x, (self.padded_channels, *e.data_shape))

        def at(c, row, t, i, j, k):  # type: ignore[no-untyped-def]
            if vectors is not None:
                k += self._first_lane()
                return vectors[c, row, t, i, j, k // self.reads, k % self.reads]
            sample, part = self._place(row // e.rows)
            column = t % e.tiles[2] * self.variant.tile[2] + k
            return input_at(sample, part, [*self._corner(row, t, i, j), column], c)

        return self._transformed(at, e.data_shape)

    def _transformed(self, window: Callable[..., Expr], inner: tuple[int, ...]) -> te.Tensor:
        """The transforms of what `window` gives by channel, the indices of a tile in `inner`, and place under it."""
        outer = (self.padded_channels, *inner)
        names = index_names((*outer, 1, 1, 1))
        current = te.compute((*outer, *self.e.frequencies), window, name="window", varargs_names=names)
        for axis, name in ((2, "input_w"), (1, "input_h"), (0, "input_d")):
            if self.variant.tile[axis] > 1:
                current = self._along(current, name, axis, self._matrices(axis).input)
        _, high, wide = self.e.frequencies

        def spread(*index):  # type: ignore[no-untyped-def]
            f, *at = index
            return current[(*at, f // (high * wide), f // wide % high, f % wide)]

        shape = (math.prod(self.e.frequencies), *outer)
        return te.compute(shape, spread, name="data", varargs_names=["f", "c", *index_names(inner)])

    def _corner(self, row: Expr, t: Expr, i: Expr, j: Expr) -> list[Expr]:
        """Depth and height, in its part, of a position under a tile."""
        depth, high, _ = self.variant.tile
        return [row % self.e.rows * depth + i, t // self.e.tiles[2] * high + j]

    def _first_lane(self) -> int:
        """The place of a window's first position in its first vector: windows begin in the padding before the input."""
        return -self.spec.pads[2].before % self.reads

    def _vectors(self, x: te.Tensor, outer: tuple[int, int, int]) -> te.Tensor | None:
        """The input under a tile in whole vectors along its width, as memory has them; None where there are none."""
        spec, e, wide = self.spec, self.e, self.reads
        if wide == 1:
            return None
        count = -(-(self._first_lane() + e.frequencies[2]) // wide)
        before, across = -(-spec.pads[2].before // wide), self.variant.tile[2] // wide
        befores = [spec.pads[0].before, spec.pads[1].before, before]
        sides = zip(self._positions(), self.axes.step, self.axes.parts, strict=True)
        extents = [(n - 1) * step + parts for n, step, parts in sides]
        extents[2] = (e.tiles[2] - 1) * across + count

        def at(c, row, t, i, j, q, lane):  # type: ignore[no-untyped-def]
            sample, part = self._place(row // e.rows)
            places = zip(part, self._corner(row, t, i, j), self.axes.step, strict=False)
            where = [p + position * step for p, position, step in places]

            def read(index: list[Expr]) -> Expr:
                *above, vector = index
                return x[(sample, c, *above, vector * wide + lane)]

            # in units of vectors, so that no condition varies inside one
            where.append(t % e.tiles[2] * across + q)
            inside = [c < self.axes.channels] if self.padded_channels > self.axes.channels else []
            size = (*spec.size[:2], spec.size[2] // wide)
            return zero_outside(self.acc, befores, size, extents, where, read, inside)

        shape = (*outer, *e.frequencies[:2], count, wide)
        return te.compute(shape, at, name="vectors", varargs_names=[*index_names((*outer, 1, 1, 1)), "lane"])

    def _along(self, before: te.Tensor, name: str, axis: int, matrix: Any) -> te.Tensor:
        """One transform of the last three axes."""
        shape = [int(extent) for extent in before.shape]
        place = len(shape) - 3 + axis
        shape[place] = len(matrix)

        def read(i, *index):  # type: ignore[no-untyped-def]
            return before[(*index[:place], i, *index[place + 1 :])]

        return transform(self.acc, tuple(shape), name, matrix, read, len(shape) - place)

    def _product(self, data: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        e, variant = self.e, self.variant
        count = math.prod(e.frequencies)

        def element(f, block, tap, step, term, q, lane):  # type: ignore[no-untyped-def]
            # all in units of vectors; those beyond the last repeat it
            vector = tirx.min(block * (variant.cells // LANES) + q, e.vectors - 1)
            row, t = vector // (e.slice // LANES), vector % (e.slice // LANES)
            channel, tile = step * variant.step + term, t * LANES + lane
            if self.planes:
                part, depth = row % self.planes.parts, row // self.planes.parts
                return data[f, channel, depth // e.tiles[0], depth % e.tiles[0] + tap, part, tile]
            if e.taps > 1 and e.planes > 1:
                row = row // e.tiles[0] * e.rows + row % e.tiles[0]
            return data[f, channel, row + tap, tile]

        shape = (count, e.cell_blocks, e.taps, e.steps, variant.step, variant.cells // LANES, LANES)
        names = ["f", "block", "tap", "step", "term", "q", "lane"]
        gather = te.compute(shape, element, name="gather", varargs_names=names)
        tap = te.reduce_axis((0, e.taps), name="tap_d")
        step = te.reduce_axis((0, e.steps), name="step")
        term = te.reduce_axis((0, variant.step), name="term")

        def at(f, b, g, i, j):  # type: ignore[no-untyped-def]
            left = gather[f, b, tap, step, term, i // LANES, i % LANES]
            return te.sum(left * kernel[f * e.taps + tap, g, step * variant.step + term, j], axis=[tap, step, term])

        return te.compute((count, e.cell_blocks, e.filter_blocks, variant.cells, variant.filters), at, name="product")

    def _sums(self, product: te.Tensor) -> te.Tensor:
        """Innermost is what neighbours of the output are: filters, or tiles in channels_first."""
        *outer, cells, filters = (int(extent) for extent in product.shape)
        if self.last:
            shape = (*outer, cells, filters // LANES, LANES)
            return te.compute(shape, lambda *at: product[(*at[:4], at[4] * LANES + at[5])], name="sums")
        shape = (*outer, filters, cells // LANES, LANES)
        return te.compute(shape, lambda *at: product[(*at[:3], at[4] * LANES + at[5], at[3])], name="sums")

    def _totals(self, sums: te.Tensor) -> te.Tensor:
        """The inverse transforms: (row of tiles, tile, filter, positions of the tile)."""
        e, variant = self.e, self.variant
        _, high, wide = e.frequencies

        def at(row, t, g, z, y, x):  # type: ignore[no-untyped-def]
            p, f = row * e.slice + t, (z * high + y) * wide + x
            cell, filter_ = p % variant.cells, g % variant.filters
            inner = (cell, filter_ // LANES, g % LANES) if self.last else (filter_, cell // LANES, p % LANES)
            return sums[(f, p // variant.cells, g // variant.filters, *inner)]

        shape = (e.planes * e.tiles[0], e.slice, e.filter_blocks * variant.filters, *e.frequencies)
        current = te.compute(shape, at, name="spectrum", varargs_names=index_names(shape))
        for axis, name in enumerate(("output_d", "output_h", "output_w")):
            if variant.tile[axis] > 1:
                current = self._along(current, name, axis, self._matrices(axis).output)
        return current

    def _bad(self, totals: te.Tensor) -> te.Tensor:
        """1 for tiles with a sum that is not finite; TVM would fold x * 0 and x - x to zero."""
        axes = [te.reduce_axis((0, m), name=name) for m, name in zip(self.variant.tile, "ijk", strict=True)]
        tiny = tirx.const(2.0**-64, self.acc)
        shape = tuple(totals.shape[:3])
        flag = te.compute(shape, lambda *at: te.sum(totals[(*at, *axes)] * tiny, axis=axes), name="flag")
        most = tirx.const(float(np.finfo(np.float32).max), self.acc)
        one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")
        return te.compute(shape, lambda *at: tirx.Select(tirx.abs(flag[at]) <= most, zero, one), name="bad")

    def _direct(self, input_at: Callable[..., Expr], kernel: te.Tensor, bad: te.Tensor) -> te.Tensor:
        """The positions of a bad tile by the definition."""
        e, variant = self.e, self.variant
        taps = [te.reduce_axis((0, t), name=f"tap_{name}") for t, name in zip(self.axes.taps, "dhw", strict=True)]
        channel = te.reduce_axis((0, self.axes.channels), name="channel")
        _, high, wide = self.axes.taps

        def at(*index):  # type: ignore[no-untyped-def]
            row, t, g, *inside = index
            sample, part, depth = self._row(row, e.tiles[0])
            tile = (depth, t // e.tiles[2], t % e.tiles[2])
            corner = [p * m + i + tap for p, m, i, tap in zip(tile, variant.tile, inside, taps, strict=True)]
            number = plain_from(e) + (taps[0] * high + taps[1]) * wide + taps[2]
            weight = kernel[number, g // variant.filters, channel, g % variant.filters]
            value = input_at(sample, part, corner, channel) * weight
            wanted = tirx.if_then_else(bad[row, t, g] == 1, value, tirx.const(0, self.acc))
            return te.sum(wanted, axis=[*taps, channel])

        shape = (e.planes * e.tiles[0], e.slice, e.filter_blocks * variant.filters, *variant.tile)
        return te.compute(shape, at, name="direct", varargs_names=index_names(shape))

    def _out(
        self, totals: te.Tensor, bad: te.Tensor, direct: te.Tensor, bias: te.Tensor, residual: Residual
    ) -> te.Tensor:
        tiling = self._tiling()

        def total_at(*at):  # type: ignore[no-untyped-def]
            return tirx.if_then_else(bad[at[:3]] == 1, direct[at], totals[at])

        if self.planes:
            whole = self.planes.tile(total_at, int(direct.shape[2]))
            added = functools.partial(residual.in_tile, tiling)
            return self.planes.out(whole, lambda total, g, at: finish(self.spec, total, bias[g], added(at)))

        def at(row, t, g, i, j, k):  # type: ignore[no-untyped-def]
            total = total_at(row, t, g, i, j, k)
            place = (row, t, g, i, j, k) if self.last else (row, t, g, i, j, k // self.stores, k % self.stores)
            return finish(self.spec, total, bias[g], residual.in_tile(tiling, place))

        if self.last:
            names = ["row", "t", "g", "i", "j", "k"]
            return te.compute(direct.shape, at, name="out", varargs_names=names)
        # apart, as the loop of the store is a vector
        tile = te.compute(direct.shape, at, name="tile", varargs_names=index_names(direct.shape))
        *outer, wide = (int(extent) for extent in direct.shape)
        shape = (*outer, wide // self.stores, self.stores)
        names = ["row", "t", "g", "i", "j", "vector", "lane"]
        return te.compute(
            shape, lambda *at: tile[(*at[:-2], at[-2] * self.stores + at[-1])], name="out", varargs_names=names
        )

    def _tiling(self) -> Tiling:
        """Declared axes: row, tile, filter, and the positions of a tile; the row holds sample, parts and depth.

        In channels_first the last two are vectors of positions along the width, and their elements.
        """
        if self.planes:
            return self.planes.tiling()
        spec, e, parts = self.spec, self.e, self.axes.parts
        depth, _, wide = e.tiles
        md, mh, mw = self.variant.tile

        def part(axis: int) -> tuple[Term, ...]:
            faster = depth * math.prod(parts[axis + 1 :])
            return (term(0, 1, faster, parts[axis]),) if parts[axis] > 1 else ()

        n = (term(0, 1, depth * math.prod(parts)),)
        d = (term(0, md * parts[0], 1, depth), term(3, parts[0]), *part(0))
        h = (term(1, mh * parts[1], wide), term(4, parts[1]), *part(1))
        # in units of vectors, so that a vector exists or does not
        w = (term(1, mw // self.stores * parts[2], 1, wide), term(5, parts[2]), *part(2))
        f = (term(2),)
        if self.last:
            return Tiling(spec.output_shape, (n, d, h, w, f))
        *outer, size = spec.output_shape
        return Tiling((*outer, size // self.stores, self.stores), (n, f, d, h, w, (term(6),)))
