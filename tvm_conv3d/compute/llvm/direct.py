"""Direct convolution: the sum over taps and channels as it is defined, on register tiles of columns by filters.

Stages, each a block that a schedule places:

gather      a zero-padded copy of the input positions, channels innermost, widened to the accumulator's type
conv        the sums of one register tile: `rows` x `columns` output positions by `vectors` x `lanes` filters
tile        of channels_last: bias and activation, where the result cannot be stored straight from the registers
transposed  of channels_first: the sums of a tile in rows of each filter
out         the store in the user's layout, in channels_first with bias and activation, narrowed to the user's type

Each phase of a transposed convolution is like a group of its own that reads the channels of its group.
Filters are padded to whole register tiles in the packed weights only.
"""

from __future__ import annotations

import math

from tvm import te

from tvm_conv3d.compute.llvm.variants import DirectVariant
from tvm_conv3d.compute.shared import phases
from tvm_conv3d.compute.shared.argument import PACKED_BIAS, PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.compute.shared.layout import grouped_input, grouped_output, grouped_reader, grouped_shape, in_layout
from tvm_conv3d.compute.shared.packing import Weights
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import (
    error_of_sums,
    finish,
    from_tile,
    in_tile,
    reduction,
    under_tap,
    window_extents,
    zero_padded,
)
from tvm_conv3d.spec import CHANNELS_LAST


def declare(spec: CanonicalSpec, variant: DirectVariant) -> Declaration:
    """The TE declaration of `spec`.

    Arguments of the function: input, packed weights and packed bias (:func:`declare_packing`), output.

    Raises:
        ValueError: `variant` reads the input as it is although `spec` needs a padded copy, or its interleaved groups
            do not suit `spec`, do not find room in a tile, or are to be stored in strips; of phases there are neither
            interleaved groups nor strips.
    """
    acc = spec.accumulator
    lanes, vectors, rows, columns = variant.lanes, variant.vectors, variant.rows, variant.columns
    depth, height, width = spec.out_size
    row_tiles, column_tiles = -(-height // rows), -(-width // columns)
    filters, together = FilterPacking.of(spec, variant), variant.interleaved
    groups, blocks = filters.sharing, filters.blocks
    if variant.gather == "none" and needs_gather(spec, variant):
        raise ValueError(f"{spec.key()} needs a padded copy of its input. Received: {variant}")
    if together > 1 and blocks > 1:
        raise ValueError(f"The filters of interleaved groups of {spec.key()} must fit a tile. Received: {variant}")
    if together > 1 and variant.order == "strips":
        raise ValueError(f"Interleaved groups of {spec.key()} are not stored in strips. Received: {variant}")
    if spec.phased and (together > 1 or variant.order == "strips"):
        raise ValueError(f"Phases of {spec.key()} are neither interleaved nor stored in strips. Received: {variant}")

    x = grouped_input(spec)
    shape = (groups, blocks, *spec.kernel, spec.group_channels, vectors, lanes)
    kernel = te.placeholder(shape, acc, name="kernel")
    bias = te.placeholder((groups, blocks, vectors, lanes), acc, name="bias")

    positions = (depth, row_tiles * rows, column_tiles * columns)
    read = _gather(spec, x, positions, together) if variant.gather != "none" else grouped_reader(spec, x)
    taps, channel = reduction(spec)

    def conv_at(n, g, b, d, ho, hi, wo, wi, v, lane):  # type: ignore[no-untyped-def]
        at = (d, ho * rows + hi, wo * columns + wi)
        position = under_tap(spec, at, taps)
        group = phases.group(spec, g)
        place = (group, channel) if together == 1 else (group, channel, lane % together)
        return te.sum(read(n, *position, *place) * kernel[(g, b, *taps, channel, v, lane)], axis=[*taps, channel])

    conv_shape = (spec.batch, groups, blocks, depth, row_tiles, rows, column_tiles, columns, vectors, lanes)
    conv = te.compute(conv_shape, conv_at, name="conv")

    if spec.data_format == CHANNELS_LAST or together > 1:
        tile = te.compute(conv_shape, lambda *i: in_tile(spec, conv(*i), bias[i[1], i[2], i[8], i[9]]), name="tile")
    else:
        transposed = te.compute(
            (*conv_shape[:7], vectors, lanes, columns), lambda *i: conv(*i[:7], i[9], i[7], i[8]), name="transposed"
        )

    tiling = phases.tiling(spec) if spec.phased else None
    stored = grouped_shape(spec, spec.out_size, groups, filters.shared_filters) if tiling is None else tiling.shape
    residual = Residual(spec, stored)

    def out_at(n, g, f, d, h, w):  # type: ignore[no-untyped-def]
        v, lane = filters.place(f)
        at = in_layout(spec, n, (g, f), (d, h, w))
        added = residual.at(*at) if tiling is None else residual.in_tile(tiling, at)
        position = (n, g, v // vectors, d, h // rows, h % rows, w // columns)
        if spec.data_format == CHANNELS_LAST or together > 1:
            return from_tile(spec, tile[(*position, w % columns, v % vectors, lane)], added)
        value = transposed[(*position, v % vectors, lane, w % columns)]
        return finish(spec, value, bias[g, v // vectors, v % vectors, lane], added)

    out = grouped_output(spec, groups, filters.shared_filters, out_at)
    return Declaration((x, kernel, bias, *residual.tensors, out), tiling, stages_in_tiles=False)


def declare_packing(spec: CanonicalSpec, variant: DirectVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (groups, blocks, kd, kh, kw, channels, vectors, lanes).
        Bias (groups, blocks, vectors, lanes).

    Interleaved groups count as one, each phase of a group as one more.
    """
    filters = FilterPacking.of(spec, variant)

    def kernel_at(shared, block, d, h, w, channel, vector, lane):  # type: ignore[no-untyped-def]
        return weights.kernel((d, h, w), channel, *filters.filter_at(shared, block, vector, lane))

    shape = (filters.sharing, filters.blocks, *spec.kernel, spec.group_channels, variant.vectors, variant.lanes)
    bias = te.compute((*shape[:2], *shape[-2:]), lambda *i: weights.bias(*filters.filter_at(*i)), name=PACKED_BIAS)
    return te.compute(shape, kernel_at, name=PACKED_KERNEL), bias


def error_bound(spec: CanonicalSpec, variant: DirectVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, spec.group_channels * math.prod(spec.kernel))


def needs_gather(spec: CanonicalSpec, variant: DirectVariant) -> bool:
    """Whether the input has to be copied: for pads, another layout or type, or tiles that overhang the output."""
    _, height, width = spec.out_size
    return (
        variant.interleaved > 1
        or spec.pads != ((0, 0),) * 3
        or spec.data_format != CHANNELS_LAST
        or spec.dtype != spec.accumulator
        or height % variant.rows != 0
        or width % variant.columns != 0
    )


def _gather(spec: CanonicalSpec, x: te.Tensor, positions: tuple[int, ...], together: int) -> te.Tensor:
    """A copy with zeros around it, as large as the windows of so many output positions along each axis.

    The same channel of `together` groups lies side by side.
    """
    extents = window_extents(spec, positions)
    read = grouped_reader(spec, x)

    def at(n, d, h, w, g, c, *turn):  # type: ignore[no-untyped-def]
        group = g * together + turn[0] if turn else g
        return zero_padded(spec, extents, (d, h, w), lambda position: read(n, *position, group, c))

    turns = (together,) if together > 1 else ()
    shape = (spec.batch, *extents, spec.groups // together, spec.group_channels, *turns)
    return te.compute(shape, lambda *index: at(*index), name="gather")
