"""The gradient of a convolution's weights: for each tap, the sum over samples and positions of input times gradient.

Output positions are cut into boxes, and boxes into chunks. Stages, each a block that a schedule places:

inputs      of one box, a zero-padded copy of the input positions that its windows read, channels innermost, widened to
            the accumulator's type
gradients   of one box, a copy of the output's gradient, filters in whole vectors, widened likewise
part        the sums over one box for one register tile: some channels, and maybe taps, by `vectors` x `lanes` filters
sums        the sums over the boxes of one chunk, one after the other
out         the sum over the chunks, in the order of the weights, narrowed to the user's type

With a bias its gradient, the sum of the output's gradient, is made by the same boxes and chunks: `bias_part`,
`bias_sums`, `bias_gradient`. Nothing depends on which thread does what: results are the same at each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from tvm_conv3d.compute.llvm.variants import WeightGradientVariant
from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT, GRADIENT, OUT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen
from tvm_conv3d.compute.shared.layout import grouped_input, grouped_reader, grouped_shape
from tvm_conv3d.compute.shared.stages import error_of_sums, window_extents, zero_outside, zero_unless
from tvm_conv3d.spec import CHANNELS_LAST, Triple

Expr = Any  # a TVM expression; its classes are not public names


def boxes_of(spec: CanonicalSpec, box: Triple) -> Triple:
    """How many boxes there are along depth, height and width.

    Raises:
        ValueError: they leave a rest.
    """
    counts = [divmod(n, b) for n, b in zip(spec.out_size, box, strict=True)]
    if any(rest for _, rest in counts):
        raise ValueError(f"Boxes must divide the output {spec.out_size} of {spec.key()}. Received: {box}")
    depth, height, width = (count for count, _ in counts)
    return depth, height, width


def tiles_of(spec: CanonicalSpec, variant: WeightGradientVariant) -> tuple[int, int]:
    """Register tiles along the channels of a group, and along the filters that share vectors."""
    per_tile = variant.vectors * variant.lanes
    return -(-spec.group_channels // variant.channels), -(-together(spec, variant)[1] // per_tile)


def together(spec: CanonicalSpec, variant: WeightGradientVariant) -> tuple[int, int]:
    """Sets of filters, and how many filters of each share vectors: those of a group, or all."""
    return (1, spec.filters) if variant.repeated else (spec.groups, spec.group_filters)


def declare(spec: CanonicalSpec, variant: WeightGradientVariant) -> Declaration:
    """The TE declaration of `spec`.

    Arguments of the function: input, gradient of the output, gradient of the weights, that of the bias where the spec
    has one.

    Raises:
        ValueError: boxes do not divide the output, or chunks the boxes, or `variant` copies too little.
    """
    v = variant
    boxes = spec.batch * math.prod(boxes_of(spec, v.box))
    if boxes % v.chunks:
        raise ValueError(f"Chunks must divide the {boxes} boxes of {spec.key()}. Received: {v}")
    needed = (needs_copy_of_input(spec, v), needs_copy_of_gradient(spec, v))
    if any(needs and not copies for needs, copies in zip(needed, (v.copy_input, v.copy_gradient), strict=True)):
        raise ValueError(f"{spec.key()} needs copies of what it reads. Received: {v}")
    of_chunk, (channel_tiles, filter_tiles) = boxes // v.chunks, tiles_of(spec, v)
    x = grouped_input(spec)
    shape = grouped_shape(spec, spec.out_size, spec.groups, spec.group_filters)
    gradient = te.placeholder(shape, storage_dtype(spec.dtype), name=GRADIENT)
    read, read_gradient = _inputs(spec, v, x), _gradients(spec, v, gradient)
    positions = [te.reduce_axis((0, cells), name=f"of_{axis}") for cells, axis in zip(v.box, "dhw", strict=True)]

    def part_at(chunk, box, g, *place):  # type: ignore[no-untyped-def]
        *taps, channels, filters, channel, vector, lane = place
        at = [p * s + t * d for p, s, t, d in zip(positions, spec.strides, taps, spec.dilation, strict=True)]
        number = chunk * of_chunk + box
        value = read(number, at, g, channels * v.channels + channel, filters, vector, lane)
        return te.sum(value * read_gradient(number, positions, g, filters, vector, lane), axis=positions)

    tile = (together(spec, v)[0], *spec.kernel, channel_tiles, filter_tiles, v.channels, v.vectors, v.lanes)
    part = te.compute((v.chunks, of_chunk, *tile), part_at, name="part")
    sums = _summed(part, of_chunk, "sums")
    total = _total(sums, v.chunks)

    def out_at(d, h, w, channel, g, f):  # type: ignore[no-untyped-def]
        g, f = (0, g * spec.group_filters + f) if v.repeated else (g, f)
        vector, lane = f // v.lanes, f % v.lanes
        at = (channel // v.channels, vector // v.vectors, channel % v.channels, vector % v.vectors, lane)
        return total(g, d, h, w, *at)

    weights = (*spec.kernel, spec.group_channels, spec.groups, spec.group_filters)
    out = _stored(spec, weights, out_at, OUT)
    biases = _bias(spec, v, gradient, of_chunk) if spec.bias else ()
    return Declaration((x, gradient, out, *biases))


def error_bound(spec: CanonicalSpec, variant: WeightGradientVariant) -> float:
    """The relative error (2-norm) to expect of data without structure."""
    return error_of_sums(spec, spec.batch * math.prod(spec.out_size))


def needs_copy_of_input(spec: CanonicalSpec, variant: WeightGradientVariant) -> bool:
    """Whether the input has to be copied: for pads, another layout or type, or tiles that overhang the channels."""
    uneven = spec.group_channels % variant.channels != 0
    return _needs_copy(spec) or uneven or variant.repeated or spec.pads != ((0, 0),) * 3


def needs_copy_of_gradient(spec: CanonicalSpec, variant: WeightGradientVariant) -> bool:
    """Whether the output's gradient has to be: for another layout or type, or tiles that overhang the filters."""
    return _needs_copy(spec) or together(spec, variant)[1] % (variant.vectors * variant.lanes) != 0


def _needs_copy(spec: CanonicalSpec) -> bool:
    return spec.data_format != CHANNELS_LAST or spec.dtype != spec.accumulator


def _origin(spec: CanonicalSpec, box: Triple, number: Expr) -> tuple[Expr, list[Expr]]:
    """The sample of a box, and its first output position."""
    depth, height, width = boxes_of(spec, box)
    places = (number // (height * width) % depth, number // width % height, number % width)
    return number // (depth * height * width), [place * cells for place, cells in zip(places, box, strict=True)]


def _inputs(spec: CanonicalSpec, v: WeightGradientVariant, x: te.Tensor) -> Callable[..., Expr]:
    """Reads (number of a box, place in its padded input, group, channel, and the tile, vector and lane of a filter)."""
    read = grouped_reader(spec, x)

    def place(number: Expr, at: Sequence[Expr]) -> tuple[Expr, list[Expr]]:
        sample, origin = _origin(spec, v.box, number)
        return sample, [o * s + a for o, s, a in zip(origin, spec.strides, at, strict=True)]

    if not v.copy_input:

        def straight(number, at, g, channel, *_):  # type: ignore[no-untyped-def]
            sample, position = place(number, at)
            return read(sample, *position, g, channel)

        return straight
    channels = tiles_of(spec, v)[0] * v.channels
    befores, whole = [before for before, _ in spec.pads], window_extents(spec, spec.out_size)

    tiles = tiles_of(spec, v)[1]
    overhang = tiles * v.vectors * v.lanes > spec.filters

    def at(number, d, h, w, c, g, *turn):  # type: ignore[no-untyped-def]
        sample, position = place(number, (d, h, w))
        inside = [c < spec.group_channels] if channels > spec.group_channels else []
        if turn:
            f = _filter(v, g, *turn)
            g, inside = f // spec.group_filters, [*inside, *([f < spec.filters] if overhang else [])]
        return zero_outside(
            spec.accumulator, befores, spec.size, whole, position, lambda cell: read(sample, *cell, g, c), inside
        )

    extents = (spec.batch * math.prod(boxes_of(spec, v.box)), *window_extents(spec, v.box))
    if v.repeated:
        copy = te.compute((*extents, channels, tiles, v.vectors, v.lanes), lambda *i: at(*i), name="inputs")
        return lambda number, at, g, channel, *place: copy(number, *at, channel, *place)
    copy = te.compute((*extents, spec.groups, channels), lambda *i: at(*i[:4], i[5], i[4]), name="inputs")
    return lambda number, at, g, channel, *_: copy(number, *at, g, channel)


def _gradients(spec: CanonicalSpec, v: WeightGradientVariant, gradient: te.Tensor) -> Callable[..., Expr]:
    """Reads (number of a box, position in it, group, tile of filters, vector, lane)."""
    groups, filters = together(spec, v)

    def read(number: Expr, position: Sequence[Expr], g: Expr, f: Expr) -> Expr:
        sample, origin = _origin(spec, v.box, number)
        g, f = (f // spec.group_filters, f % spec.group_filters) if v.repeated else (g, f)
        return _read_gradient(spec, gradient, sample, [o + p for o, p in zip(origin, position, strict=True)], g, f)

    if not v.copy_gradient:
        return lambda number, position, g, *place: read(number, position, g, _filter(v, *place))
    tiles = tiles_of(spec, v)[1]
    overhang = tiles * v.vectors * v.lanes > filters

    def at(number, d, h, w, g, tile, vector, lane):  # type: ignore[no-untyped-def]
        f = _filter(v, tile, vector, lane)
        return zero_unless([f < filters] if overhang else [], read(number, (d, h, w), g, f), spec.accumulator)

    boxes = spec.batch * math.prod(boxes_of(spec, v.box))
    copy = te.compute((boxes, *v.box, groups, tiles, v.vectors, v.lanes), at, name="gradients")
    return lambda number, position, *place: copy(number, *position, *place)


def _filter(v: WeightGradientVariant, tile: Expr, vector: Expr, lane: Expr) -> Expr:
    """The number of a filter among those that share vectors."""
    return (tile * v.vectors + vector) * v.lanes + lane


def _read_gradient(
    spec: CanonicalSpec, gradient: te.Tensor, sample: Expr, position: Sequence[Expr], g: Expr, f: Expr
) -> Expr:
    """An element of the output's gradient, widened to the accumulator's type."""
    last = spec.data_format == CHANNELS_LAST
    value = gradient[(sample, *position, g, f)] if last else gradient[(sample, g, f, *position)]
    return widen(value, spec.dtype, spec.accumulator)


def _bias(spec: CanonicalSpec, v: WeightGradientVariant, gradient: te.Tensor, of_chunk: int) -> tuple[te.Tensor, ...]:
    """The gradient of the bias."""
    positions = [te.reduce_axis((0, cells), name=f"of_{axis}") for cells, axis in zip(v.box, "dhw", strict=True)]

    def part_at(chunk, box, g, f):  # type: ignore[no-untyped-def]
        sample, origin = _origin(spec, v.box, chunk * of_chunk + box)
        at = [o + p for o, p in zip(origin, positions, strict=True)]
        return te.sum(_read_gradient(spec, gradient, sample, at, g, f), axis=positions)

    shape = (spec.groups, spec.group_filters)
    part = te.compute((v.chunks, of_chunk, *shape), part_at, name="bias_part")
    total = _total(_summed(part, of_chunk, "bias_sums"), v.chunks)
    return (_stored(spec, shape, total, BIAS_GRADIENT),)


def _summed(part: te.Tensor, of_chunk: int, name: str) -> te.Tensor:
    """The sums over the boxes of each chunk."""
    box = te.reduce_axis((0, of_chunk), name="box")
    shape = (part.shape[0], *part.shape[2:])
    return te.compute(shape, lambda chunk, *at: te.sum(part(chunk, box, *at), axis=box), name=name)


def _total(sums: te.Tensor, chunks: int) -> Callable[..., Expr]:
    """The sum over the chunks, in halves: what walks over an expression calls itself as often as it is deep."""

    def of(first: int, count: int, place: Sequence[Expr]) -> Expr:
        if count == 1:
            return sums(first, *place)
        half = count // 2
        return of(first, half, place) + of(first + half, count - half, place)

    return lambda *place: of(0, chunks, place)


def _stored(spec: CanonicalSpec, shape: Sequence[int], at: Callable[..., Expr], name: str) -> te.Tensor:
    """What `at` gives, in the user's type."""
    return te.compute(tuple(shape), lambda *place: narrow(at(*place), spec.dtype, spec.accumulator), name=name)
