"""Convolution as a matrix product whose left matrix is never stored: positions x (taps * channels) by filters.

For GPUs. A block of threads owns a tile of output positions by filters. Step by step along the reduction it gathers the
input elements that its positions see, zeros outside of the input included, and its share of the weights.

Stages, each a block that a schedule places:

gather    the left matrix: for each output position the input under a step of the reduction
product   the sums of a tile
partial   kept, where the reduction is cut into parts: the sums of each part
total     the parts, added in their order by a second kernel
tile      bias and activation
out       the store in the user's layout

The reduction goes over taps and channels; where channels are few, over both as one index, whose neighbours lie side by
side: channels, or taps in channels_first. All extents but those of the
output are rounded up to whole tiles: weights are zero beyond, and what the gather reads there is zero or a repeated
position, never stored. Each phase of a transposed convolution is like a group of its own that reads the channels of its
group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import te, tirx

from tvm_conv3d.compute.cuda.variants import GemmVariant
from tvm_conv3d.compute.shared import phases
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.packing import Weights, bias_of_groups
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import error_of_sums, finish, in_lanes, unravel, window_extents, zero_padded
from tvm_conv3d.compute.shared.tiled_output import Tiling, term
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names


class Cut(Protocol):
    """What all variants of the product have; :class:`GemmVariant` says what it means."""

    @property
    def cells(self) -> int: ...
    @property
    def filters(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def vector(self) -> int: ...
    @property
    def store(self) -> int: ...
    @property
    def flat(self) -> bool: ...
    @property
    def parts(self) -> int: ...
    @property
    def turned(self) -> bool: ...
    @property
    def stages(self) -> int: ...


@dataclass(frozen=True)
class Extents:
    """Sizes of one product.

    Attributes:
        planes: samples whose positions are counted apart: all of them in channels_first, where filters lie between.
        cells: output positions of a plane.
        taps: axes of the reduction over taps, 1 each where they are flattened.
        terms: of the innermost axis of the reduction: channels of a group, or taps times channels.
        cell_blocks, filter_blocks, steps: number of tiles along each axis.
    """

    planes: int
    cells: int
    taps: tuple[int, int, int]
    terms: int
    cell_blocks: int
    filter_blocks: int
    steps: int

    @property
    def turns(self) -> int:
        """Steps of the whole reduction."""
        return math.prod(self.taps) * self.steps


def extents_of(spec: CanonicalSpec, variant: Cut) -> Extents:
    """How `variant` cuts `spec`."""
    planes, cells = spec.batch, math.prod(spec.out_size)
    if spec.data_format == CHANNELS_LAST:
        planes, cells = 1, planes * cells
    taps, terms = spec.kernel, spec.group_channels
    if variant.flat:
        taps, terms = (1, 1, 1), math.prod(taps) * terms
    blocks = [-(-n // size) for n, size in ((cells, variant.cells), (spec.set_filters, variant.filters))]
    return Extents(planes, cells, taps, terms, blocks[0], blocks[1], -(-terms // variant.step))


def declare(spec: CanonicalSpec, variant: GemmVariant) -> Declaration:
    """The TE declaration; arguments: input, packed weights, packed bias, output.

    Raises:
        ValueError: `variant` reads or writes more elements at once than lie side by side.
    """
    return GemmBuilder(spec, variant).declaration()


def declare_packing(spec: CanonicalSpec, variant: Cut, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (sets, filter blocks, kd, kh, kw, steps, step, filters).
        Bias (sets, filter blocks, filters of a tile).
    """
    return packed_by(weights.kernel, spec, variant, weights)


def packed_by(
    weight: Callable[..., Expr], spec: CanonicalSpec, variant: Cut, weights: Weights
) -> tuple[te.Tensor, te.Tensor]:
    """:func:`declare_packing` of the weights that `weight` gives, :meth:`Weights.kernel` or :meth:`Weights.stored`."""
    e = extents_of(spec, variant)
    each = spec.set_filters

    def kernel_at(group, block, d, h, w, step, q, i):  # type: ignore[no-untyped-def]
        term, number = step * variant.step + q, block * variant.filters + i
        inside = [term < e.terms] if e.terms % variant.step else []
        inside += [number < each] if each % variant.filters else []
        taps, channel = [d, h, w], term
        if variant.flat:
            taps, vector = _of_flat(spec, variant, term // variant.vector)
            channel = vector * variant.vector + term % variant.vector
        return weight(taps, channel, group * each + number, inside)

    shape = (spec.sets, e.filter_blocks, *e.taps, e.steps, variant.step, variant.filters)
    kernel = te.compute(shape, kernel_at, name=PACKED_KERNEL)
    return kernel, bias_of_groups(weights, spec, e.filter_blocks, variant.filters)


def error_bound(spec: CanonicalSpec, variant: Cut) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, spec.group_channels * math.prod(spec.kernel), on_gpu=True)


class GemmBuilder:
    """The stages of one declaration."""

    def __init__(self, spec: CanonicalSpec, variant: Cut) -> None:
        if spec.group_channels % variant.vector or variant.step % variant.vector:
            raise ValueError(f"{spec.key()} has no vectors of {variant.vector} channels. Received: {variant}")
        self.spec = spec
        self.variant = variant
        self.e = extents_of(spec, variant)
        self.last = spec.data_format == CHANNELS_LAST
        self.stored, self.factor = self._types()
        along = run_of_output(spec)
        if along % variant.store:
            raise ValueError(f"{spec.key()} can't store {variant.store} elements at once. Received: {variant}")
        #: what a kernel before the product fills
        self.kept: tuple[te.Tensor, ...] = ()
        #: extents of what numbers the steps of the reduction
        self.turns = (self.e.turns,) if self._fused() else (*self.e.taps, self.e.steps)
        if self.e.turns % variant.parts:
            raise ValueError(f"The reduction of {spec.key()} has no {variant.parts} equal parts. Received: {variant}")

    def _fused(self) -> bool:
        """Whether one axis numbers all steps of the reduction: where it is cut, or copies run over the ends of taps."""
        return self.variant.parts > 1 or self.variant.stages > 1

    def _types(self) -> tuple[str, str]:
        """Element types of the input and of what is multiplied."""
        return storage_dtype(self.spec.dtype), self.spec.accumulator

    def declaration(self) -> Declaration:
        spec, variant, e = self.spec, self.variant, self.e
        x = te.placeholder(spec.input_shape, self.stored, name="x")
        shape = (spec.sets, e.filter_blocks, *self.turns, variant.step, variant.filters)
        kernel = te.placeholder(shape, self.factor, name="kernel")
        bias = te.placeholder((spec.sets, e.filter_blocks, variant.filters), spec.accumulator, name="bias")
        product = self._product(self._gather(x), kernel)
        tiling = self._tiling()
        residual = Residual(spec, tiling.shape)
        operands = (x, kernel, bias, *residual.tensors)
        if variant.parts == 1:
            return Declaration((*operands, self._out(product, bias, residual)), tiling, self.kept, aligned=True)
        partial = self._in_lanes("partial", product, as_output=True)
        out = self._added(partial, bias, residual)
        return Declaration((*operands, out), tiling, (*self.kept, partial), aligned=True)

    def _gather(self, x: te.Tensor) -> te.Tensor:
        """Cells innermost, as a thread reads several of them for one term."""
        variant, e = self.variant, self.e

        def at(*index):  # type: ignore[no-untyped-def]
            n, g, block, *turn, q, v, i = index
            taps, step = self._turn(turn)
            return self._element(x, (n, block * variant.cells + i), g, taps, (step, q, v))

        inner = (variant.step // variant.vector, variant.vector, variant.cells)
        shape = (e.planes, self.spec.sets, e.cell_blocks, *self.turns, *inner)
        return te.compute(shape, at, name="gather")

    def _turn(self, index: Sequence[Expr]) -> tuple[Sequence[Expr], Expr]:
        """Taps and step by the axes of :attr:`turns`."""
        if len(index) > 1:
            return index[:-1], index[-1]
        (number,) = index
        return unravel(number // self.e.steps, self.e.taps), number % self.e.steps

    def _element(
        self, x: te.Tensor, position: Sequence[Expr], g: Expr, taps: Sequence[Expr], place: Sequence[Expr]
    ) -> Expr:
        """What the left matrix holds.

        Args:
            x: the input.
            position: plane, and number in it.
            g: the set of filters.
            taps: along depth, height and width.
            place: number of the step, of the vector in it, and of the element in that.
        """
        spec, variant, e = self.spec, self.variant, self.e
        extents = window_extents(spec, spec.out_size)
        sample, corner = self._position(*position)
        # all in units of vectors, so that no condition varies inside one
        step, q, lane = place
        number = step * (variant.step // variant.vector) + q
        inside = [number < e.terms // variant.vector] if e.terms % variant.step else []
        if variant.flat:
            taps, number = _of_flat(spec, variant, number)
        there = (phases.has_tap(spec, axis, g, tap) for axis, tap in enumerate(taps))
        inside += [condition for condition in there if condition is not None]
        channel = phases.group(spec, g) * spec.group_channels + number * variant.vector + lane

        def read(index: list[Expr]) -> Expr:
            return self._factor(self._at(x, sample, index, channel))

        where = [c * s + t * d for c, s, t, d in zip(corner, spec.strides, taps, spec.dilation, strict=True)]
        return zero_padded(spec, extents, where, read, inside, self.factor)

    def _at(self, x: te.Tensor, sample: Expr, index: list[Expr], channel: Expr) -> Expr:
        """An element of the input."""
        return x[(sample, *index, channel) if self.last else (sample, channel, *index)]

    def _factor(self, stored: Expr) -> Expr:
        """An element of the input as it is multiplied."""
        return widen(stored, self.spec.dtype, self.spec.accumulator)

    def _position(self, plane: Expr, position: Expr) -> tuple[Expr, list[Expr]]:
        """Sample and output position by their number in a plane; those beyond the last repeat it."""
        spec, e = self.spec, self.e
        if e.cells % self.variant.cells:
            position = tirx.min(position, e.cells - 1)
        if self.last and spec.batch > 1:
            per_sample = math.prod(spec.out_size)
            return position // per_sample, unravel(position % per_sample, spec.out_size)
        return plane, unravel(position, spec.out_size)

    def _shares(self) -> int:
        """Shares of every step's terms that have sums of their own."""
        return 1

    def _product(self, gather: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        """The sums of a tile; of several shares each in sums of their own."""
        variant, e, shares = self.variant, self.e, self._shares()
        apart = (shares,) if shares > 1 else ()
        shape = (e.planes, self.spec.sets, e.cell_blocks, e.filter_blocks, *apart, variant.cells, variant.filters)
        cut = variant.parts > 1
        extents = (e.turns // variant.parts,) if cut else self.turns
        names = ("turn",) if len(extents) == 1 else ("tap_d", "tap_h", "tap_w", "step")
        turns = [te.reduce_axis((0, extent), name=name) for extent, name in zip(extents, names, strict=True)]
        own = variant.step // shares
        term = te.reduce_axis((0, own), name="term")

        def at(*index):  # type: ignore[no-untyped-def]
            part, (n, g, b, f, *share, i, j) = index[: len(index) - len(shape)], index[-len(shape) :]
            turn = [part[0] * extents[0] + turns[0]] if cut else turns
            place = share[0] * own + term if share else term
            left = gather[(n, g, b, *turn, *self._place(i, place))]
            right = kernel[(g, f, *turn, place, j)]
            return te.sum(self._widened(left) * self._widened(right), axis=[*turns, term])

        return te.compute((variant.parts, *shape) if cut else shape, at, name="product")

    def _place(self, i: Expr, term: Expr) -> tuple[Expr, ...]:
        """Where the gathered matrix of a step holds the element of position `i` and `term`."""
        return term // self.variant.vector, term % self.variant.vector, i

    def _widened(self, factor: te.TensorSlice) -> Expr:
        """A factor in the accumulator's type."""
        return factor if self.factor == self.spec.accumulator else factor.astype(self.spec.accumulator)

    def _out(self, product: te.Tensor, bias: te.Tensor, residual: Residual) -> te.Tensor:
        """The finished tiles, the vectors that are stored at once innermost."""
        store, tiling = self.variant.store, self._tiling()

        # not in the store, whose loop is a vector: activations are branches
        def finished(n, g, b, f, i, j):  # type: ignore[no-untyped-def]
            place = (i, j // store, j % store) if self.last else (i // store, j, i % store)
            added = residual.in_tile(tiling, (n, g, b, f, *place))
            return finish(self.spec, product(n, g, b, f, i, j), bias(g, f, j), added)

        return self._in_lanes("out", te.compute(product.shape, finished, name="tile"))

    def _added(self, partial: te.Tensor, bias: te.Tensor, residual: Residual) -> te.Tensor:
        """The same from the sums of the parts, which are in lanes."""
        store, tiling = self.variant.store, self._tiling()
        part = te.reduce_axis((0, self.variant.parts), name="part")
        *outer, rows, columns, lanes = (int(extent) for extent in partial.shape[1:])
        shape = (*outer, rows, columns, lanes) if self.last else (*outer, columns, rows, lanes)

        def added(*at):  # type: ignore[no-untyped-def]
            *tile, i, j, lane = at
            place = (i, j) if self.last else (j, i)
            return te.sum(partial[(part, *tile, *place, lane)], axis=[part])

        total = te.compute(shape, added, name="total")

        def finished(n, g, b, f, i, j, lane):  # type: ignore[no-untyped-def]
            filter_ = j * store + lane if self.last else j
            added = residual.in_tile(tiling, (n, g, b, f, i, j, lane))
            return finish(self.spec, total(n, g, b, f, i, j, lane), bias(g, f, filter_), added)

        tile = te.compute(shape, finished, name="tile")
        return te.compute(shape, lambda *at: tile[at], name="out")

    def _in_lanes(self, name: str, tiles: te.Tensor, as_output: bool = False) -> te.Tensor:
        """A copy whose last axis are the elements that are stored at once: filters, or positions in channels_first.

        Args:
            name: of the copy.
            tiles: (..., positions, filters).
            as_output: filters come before positions in channels_first, as in the output.
        """
        store = self.variant.store
        if self.last:
            return in_lanes(name, tiles, store)
        *outer, cells, filters = (int(extent) for extent in tiles.shape)

        def at(*index):  # type: ignore[no-untyped-def]
            *tile, i, j, lane = index
            vector, filter_ = (j, i) if as_output else (i, j)
            return tiles[(*tile, vector * store + lane, filter_)]

        inner = (filters, cells // store) if as_output else (cells // store, filters)
        return te.compute((*outer, *inner, store), at, name=name)

    def _tiling(self) -> Tiling:
        spec, variant, e = self.spec, self.variant, self.e
        store = variant.store
        if spec.phased:
            return phases.tiling_of_product(spec, (variant.cells, variant.filters), store, e.cells)
        plane, group, lane = (term(0),), (term(1),), (term(6),)
        if self.last:
            cells, filters = (term(2, variant.cells), term(4)), (term(3, variant.filters // store), term(5))
            shape = (e.cells, spec.groups, spec.group_filters // store, store)
            return Tiling(shape, (cells, group, filters, lane))
        filters, cells = (term(3, variant.filters), term(5)), (term(2, variant.cells // store), term(4))
        return Tiling(
            (e.planes, spec.groups, spec.group_filters, e.cells // store, store), (plane, group, filters, cells, lane)
        )


def _of_flat(spec: CanonicalSpec, variant: Cut, number: Expr) -> tuple[list[Expr], Expr]:
    """Taps, and vector of channels, by the number of a vector in a flattened reduction."""
    if spec.data_format == CHANNELS_LAST or variant.turned:
        vectors = spec.group_channels // variant.vector
        return unravel(number // vectors, spec.kernel), number % vectors
    taps = math.prod(spec.kernel)
    return unravel(number % taps, spec.kernel), number // taps


def run_of_output(spec: CanonicalSpec) -> int:
    """Elements of the output that lie side by side in a tile, as a multiple of which a tile's vectors are stored."""
    if spec.data_format == CHANNELS_LAST:
        return spec.set_filters
    # windows of one phase lie apart
    return 1 if spec.phased else math.prod(spec.out_size)
