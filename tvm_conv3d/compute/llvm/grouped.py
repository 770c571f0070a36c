"""Grouped convolution with few filters a group, depthwise included: every lane has the input of its own group.

The gathered copy repeats each input channel over the lanes of its group's filters, so that a plain vector
multiply-add serves filters of different groups. For depthwise layers nothing is repeated and the copy is contiguous.
Groups of 2, 4, 8, ... channels and as many filters need no repetition either (`shuffled`): step r of the reduction
exchanges the lanes of a vector so that lane l has the value of lane l xor r, which is in the same group.

Stages: gather, conv, tile or transposed, out, as in :mod:`tvm_conv3d.compute.llvm.direct`.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tvm_conv3d.compute.llvm.variants import GroupedVariant
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.packing import Weights, bias_in_blocks
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


def shuffles(spec: CanonicalSpec, lanes: int) -> bool:
    """Whether vectors of `lanes` hold whole groups of a power of two channels, and as many filters."""
    channels = spec.group_channels
    return 1 < channels == spec.group_filters and channels & (channels - 1) == 0 and lanes % channels == 0


def declare(spec: CanonicalSpec, variant: GroupedVariant) -> Declaration:
    """The TE declaration; arguments as in :func:`tvm_conv3d.compute.llvm.direct.declare`."""
    acc = spec.accumulator
    lanes, rows, columns = variant.lanes, variant.rows, variant.columns
    depth, height, width = spec.out_size
    row_tiles, column_tiles = -(-height // rows), -(-width // columns)
    blocks = -(-spec.filters // lanes)

    x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
    kernel = te.placeholder((blocks, *spec.kernel, spec.group_channels, lanes), acc, name="kernel")
    bias = te.placeholder((blocks, lanes), acc, name="bias")
    gather = _gather(spec, variant, x, (depth, row_tiles * rows, column_tiles * columns))
    taps, channel = reduction(spec)

    def conv_at(n, b, d, ho, hi, wo, wi, lane):  # type: ignore[no-untyped-def]
        at = (d, ho * rows + hi, wo * columns + wi)
        position = under_tap(spec, at, taps)
        place = (0, lane ^ channel) if variant.shuffled else (channel, lane)
        return te.sum(gather[(n, b, *position, *place)] * kernel[(b, *taps, channel, lane)], axis=[*taps, channel])

    conv_shape = (spec.batch, blocks, depth, row_tiles, rows, column_tiles, columns, lanes)
    conv = te.compute(conv_shape, conv_at, name="conv")

    def place(n, f, d, h, w):  # type: ignore[no-untyped-def]
        return n, f // lanes, d, h // rows, h % rows, w // columns, w % columns, f % lanes

    residual = Residual(spec, spec.output_shape)

    if spec.data_format == CHANNELS_LAST:
        tile = te.compute(conv_shape, lambda *i: in_tile(spec, conv(*i), bias[i[1], i[7]]), name="tile")

        def stored(n, d, h, w, f):  # type: ignore[no-untyped-def]
            return from_tile(spec, tile(*place(n, f, d, h, w)), residual.at(n, d, h, w, f))

        out = te.compute(spec.output_shape, stored, name="out")
    else:
        transposed = te.compute(
            (*conv_shape[:6], lanes, columns), lambda *i: conv(*i[:6], i[7], i[6]), name="transposed"
        )

        def finished(n, f, d, h, w):  # type: ignore[no-untyped-def]
            *position, wi, lane = place(n, f, d, h, w)
            return finish(spec, transposed(*position, lane, wi), bias[position[1], lane], residual.at(n, f, d, h, w))

        out = te.compute(spec.output_shape, finished, name="out")
    return Declaration((x, kernel, bias, *residual.tensors, out))


def declare_packing(spec: CanonicalSpec, variant: GroupedVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (blocks, kd, kh, kw, channels of a group, lanes).
        Bias (blocks, lanes).
    """
    lanes, blocks = variant.lanes, -(-spec.filters // variant.lanes)

    def kernel_at(block, d, h, w, step, lane):  # type: ignore[no-untyped-def]
        filter_ = block * lanes + lane
        channel = filter_ % spec.group_channels ^ step if variant.shuffled else step
        return weights.kernel((d, h, w), channel, filter_, [filter_ < spec.filters] if spec.filters % lanes else [])

    kernel = te.compute((blocks, *spec.kernel, spec.group_channels, lanes), kernel_at, name=PACKED_KERNEL)
    return kernel, bias_in_blocks(weights, spec.filters, (blocks, lanes))


def error_bound(spec: CanonicalSpec, variant: GroupedVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, spec.group_channels * math.prod(spec.kernel))


def _gather(s: CanonicalSpec, variant: GroupedVariant, x: te.Tensor, positions: tuple[int, ...]) -> te.Tensor:
    """For each block of filters: the input with zeros around, and each lane's own channels, or one of them."""
    extents, lanes = window_extents(s, positions), variant.lanes

    def at(n, b, d, h, w, c, lane):  # type: ignore[no-untyped-def]
        of_filter = b * lanes + lane
        channel = of_filter if variant.shuffled else of_filter // s.group_filters * s.group_channels + c

        def read(position: list[Any]) -> Any:
            index = (n, *position, channel) if s.data_format == CHANNELS_LAST else (n, channel, *position)
            return widen(x[index], s.dtype, s.accumulator)

        inside = [of_filter < s.filters] if s.filters % lanes else []
        return zero_padded(s, extents, (d, h, w), read, inside)

    shape = (s.batch, -(-s.filters // lanes), *extents, 1 if variant.shuffled else s.group_channels, lanes)
    return te.compute(shape, at, name="gather")
