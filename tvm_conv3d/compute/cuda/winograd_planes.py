"""Winograd's tiles by whole planes, in channels_first: blocks bring them through shared memory.

Neighbouring tiles begin a tile's width apart, and rows of odd length, or of interleaved parts, have no vectors that
would lie side by side: a warp that reads a position of each of its tiles asks for several times the sectors that it
uses. So a block of the first kernel brings the planes under its tiles in the order of memory, and one of the last
kernel stores them so.

Stages, in the places of `vectors` and `out` of :mod:`tvm_conv3d.compute.cuda.winograd_gemm`:

slab    the input under whole planes of tiles, zeros outside of the input included
tile    the transforms' results of whole planes
out     bias, activation, and the store in the user's layout

Both lie in shared memory with neighbouring tiles' positions of the same place side by side, in different banks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import Extents, extents_of, tiles_of_slab
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.compute.shared.winograd_stages import gathered

Expr = Any  # a TVM expression; its classes are not public names


class Planes:
    """The stages of one declaration; parts of a width lie in the same plane, so that it has whole rows.

    Rows of tiles are numbered by plane, depth, and part of the width.

    Attributes:
        parts: of a width.
        planes: of tiles, whose rows are those of depth.
        data_shape: planes, rows, parts, and tiles of a row, whose data is kept.
    """

    def __init__(self, spec: CanonicalSpec, variant: WinogradGemmVariant) -> None:
        self.spec = spec
        self.variant = variant
        self.e: Extents = extents_of(spec, variant)
        self.parts = self.e.axes.parts[2]
        self.planes = self.e.planes // self.parts
        self.data_shape = (self.planes, self.e.rows, self.parts, self.e.slice)

    def slab(self, x: te.Tensor, channels: int, place: Callable[[Expr], tuple[Expr, list[Expr]]]) -> te.Tensor:
        """The input under planes of tiles.

        Args:
            x: the input.
            channels: in whole steps.
            place: plane -> sample and part.
        """
        e, (_, high, wide) = self.e, self.variant.tile
        depth, (rows, columns) = e.frequencies[0], tiles_of_slab(self.variant, e)
        covered = ((e.tiles[0] - 1) * self.variant.tile[0] + depth + e.taps - 1, rows * high, columns * wide)
        read = gathered(self.spec, e.axes, covered, channels, x)

        def at(c, p, i, dy, dx, plane, row, y, z):  # type: ignore[no-untyped-def]
            sample, part = place(plane * self.parts + p)
            position = [row * self.variant.tile[0] + i, y * high + dy, z * wide + dx]
            return read(sample, part, position, c)

        shape = (channels, self.parts, depth, high, wide, self.planes, e.rows, rows, columns)
        return te.compute(shape, at, name="slab", varargs_names=["c", "p", "i", "dy", "dx", "plane", "row", "y", "z"])

    def window(self, slab: te.Tensor, *index: Expr) -> Expr:
        """A position under a tile, by channel, plane, row, part, tile, and place in the window."""
        across, (_, high, wide) = self.e.tiles[2], self.variant.tile
        c, plane, row, part, t, i, j, k = index
        return slab[c, part, i, j % high, k % wide, plane, row, t // across + j // high, t % across + k // wide]

    def tile(self, total: Callable[..., Expr], filters: int) -> te.Tensor:
        """Whole planes of what `total` gives by row, tile, filter, and place in the tile."""
        depth, down, across = self.e.tiles

        def at(g, p, i, j, k, plane, row, y, z):  # type: ignore[no-untyped-def]
            return total((plane * depth + row) * self.parts + p, y * across + z, g, i, j, k)

        shape = (filters, self.parts, *self.variant.tile, self.planes, depth, down, across)
        names = ["g", "p", "i", "j", "k", "plane", "row", "y", "z"]
        return te.compute(shape, at, name="tile", varargs_names=names)

    def out(self, tile: te.Tensor, finished: Callable[[Expr, Expr, tuple[Expr, ...]], Expr]) -> te.Tensor:
        """What `finished` makes of a total, its filter and its place, in the order of memory."""
        deep, high, wide = self.variant.tile
        filters, (depth, down, across) = int(tile.shape[0]), self.e.tiles

        def at(plane, row, g, i, y, z):  # type: ignore[no-untyped-def]
            column = z // self.parts
            total = tile[g, z % self.parts, i, y % high, column % wide, plane, row, y // high, column // wide]
            return finished(total, g, (plane, row, g, i, y, z))

        shape = (self.planes, depth, filters, deep, down * high, across * wide * self.parts)
        return te.compute(shape, at, name="out", varargs_names=["plane", "row", "g", "i", "y", "z"])

    def tiling(self) -> Tiling:
        """Declared axes: plane, row of tiles, filter, position below it, along a part's height, along the width."""
        parts = self.e.axes.parts

        def part(axis: int, faster: int) -> tuple[Term, ...]:
            return (term(0, 1, faster, parts[axis]),) if parts[axis] > 1 else ()

        n = (term(0, 1, parts[0] * parts[1]),)
        d = (term(1, self.variant.tile[0] * parts[0]), term(3, parts[0]), *part(0, parts[1]))
        h = (term(4, parts[1]), *part(1, 1))
        return Tiling(self.spec.output_shape, (n, (term(2),), d, h, (term(5),)))
