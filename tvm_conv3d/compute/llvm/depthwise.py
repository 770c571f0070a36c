"""Depthwise convolution, one filter a channel, on rows of positions times channels: lanes need not divide the channels.

In channels_last the positions of a row and their channels lie one after the other. Output element j of a row is the sum
of inputs j + tap x channels, each times a weight of channel j mod channels: vectors run along the whole row, and the
weights are stored as often as it takes to fill whole vectors (lcm(channels, lanes) of them). Where columns are strided,
the gathered row holds the positions of each phase one after the other.

Stages: gather, conv, tile, out, as in :mod:`tvm_conv3d.compute.llvm.direct`.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tvm_conv3d.compute.llvm.variants import DepthwiseVariant
from tvm_conv3d.compute.shared.argument import PACKED_BIAS, PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.packing import Weights
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import error_of_sums, from_tile, in_tile, window_extents, zero_outside
from tvm_conv3d.spec import CHANNELS_LAST


def applies(spec: CanonicalSpec) -> bool:
    """Whether `spec` is a depthwise convolution in channels_last, one filter a channel."""
    return spec.groups == spec.channels == spec.filters and spec.data_format == CHANNELS_LAST


def period(spec: CanonicalSpec, lanes: int) -> int:
    """Vectors after which a vector begins with the first channel again."""
    return math.lcm(spec.channels, lanes) // lanes


def declare(spec: CanonicalSpec, variant: DepthwiseVariant) -> Declaration:
    """The TE declaration; arguments as in :func:`tvm_conv3d.compute.llvm.direct.declare`.

    Raises:
        ValueError: the spec is not depthwise, or not in channels_last.
    """
    if not applies(spec):
        raise ValueError(f"Only a depthwise convolution in channels_last is taken. Received: {spec.key()}")
    acc, lanes, rows = spec.accumulator, variant.lanes, variant.rows
    depth, height, width = spec.out_size
    row_tiles, vectors, stored = -(-height // rows), _vectors(spec, variant), _period(spec, variant)

    x = te.placeholder((spec.batch, *spec.size[:2], spec.size[2] * spec.channels), storage_dtype(spec.dtype), name="x")
    kernel = te.placeholder((stored, *spec.kernel, lanes), acc, name="kernel")
    bias = te.placeholder((stored, lanes), acc, name="bias")
    gather = _gather(spec, x, (depth, row_tiles * rows), vectors * lanes)
    taps = [te.reduce_axis((0, k), name=f"tap_{axis}") for k, axis in zip(spec.kernel, "dhw", strict=True)]

    def conv_at(n, d, ho, hi, v, lane):  # type: ignore[no-untyped-def]
        at_d = d * spec.strides[0] + taps[0] * spec.dilation[0]
        at_h = (ho * rows + hi) * spec.strides[1] + taps[1] * spec.dilation[1]
        away = taps[2] * spec.dilation[2]
        at_w = v * lanes + lane + away // spec.strides[2] * spec.channels
        weight = kernel[(v % stored, *taps, lane)]
        return te.sum(gather[n, at_d, at_h, away % spec.strides[2], at_w] * weight, axis=taps)

    shape = (spec.batch, depth, row_tiles, rows, vectors, lanes)
    conv = te.compute(shape, conv_at, name="conv")
    tile = te.compute(shape, lambda *i: in_tile(spec, conv(*i), bias[i[4] % stored, i[5]]), name="tile")
    rows_of_positions = (spec.batch, depth, height, width * spec.channels)
    residual = Residual(spec, rows_of_positions)

    def out_at(n, d, h, j):  # type: ignore[no-untyped-def]
        return from_tile(spec, tile[n, d, h // rows, h % rows, j // lanes, j % lanes], residual.at(n, d, h, j))

    out = te.compute(rows_of_positions, out_at, name="out")
    return Declaration((x, kernel, bias, *residual.tensors, out))


def declare_packing(spec: CanonicalSpec, variant: DepthwiseVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (vectors of a period, kd, kh, kw, lanes).
        Bias (vectors of a period, lanes).
    """
    stored, lanes = _period(spec, variant), variant.lanes

    def kernel_at(vector, d, h, w, lane):  # type: ignore[no-untyped-def]
        return weights.kernel((d, h, w), 0, (vector * lanes + lane) % spec.channels)

    def bias_at(vector, lane):  # type: ignore[no-untyped-def]
        return weights.bias((vector * lanes + lane) % spec.channels)

    kernel = te.compute((stored, *spec.kernel, lanes), kernel_at, name=PACKED_KERNEL)
    return kernel, te.compute((stored, lanes), bias_at, name=PACKED_BIAS)


def error_bound(spec: CanonicalSpec, variant: DepthwiseVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, math.prod(spec.kernel))


def _vectors(s: CanonicalSpec, variant: DepthwiseVariant) -> int:
    """Vectors of a row of output, in whole tasks."""
    return -(-s.out_size[2] * s.channels // (variant.lanes * variant.vectors)) * variant.vectors


def _period(s: CanonicalSpec, variant: DepthwiseVariant) -> int:
    """Vectors after which the channels begin anew, or all of a row where there are fewer."""
    return min(period(s, variant.lanes), _vectors(s, variant))


def _gather(s: CanonicalSpec, x: te.Tensor, positions: tuple[int, int], length: int) -> te.Tensor:
    """The rows that the windows of so many output depths and rows see, with zeros around; phases of columns apart."""
    phases, channels = s.strides[2], s.channels
    extents = window_extents(s, (*positions, 1))[:2]
    length = -(-(length + (s.window[2] - 1) // phases * channels) // channels) * channels
    befores, size = [b for b, _ in s.pads], list(s.size)
    # in single elements, so that one comparison serves neighbours
    befores[2] *= channels
    size[2] *= channels

    def at(n, d, h, phase, j):  # type: ignore[no-untyped-def]
        index = j if phases == 1 else j // channels * (phases * channels) + phase * channels + j % channels

        def read(position: list[Any]) -> Any:
            return widen(x[(n, *position)], s.dtype, s.accumulator)

        return zero_outside(s.accumulator, befores, size, (*extents, phases * length), (d, h, index), read)

    return te.compute((s.batch, *extents, phases, length), at, name="gather")
