"""Direct convolution on planes of each channel: vectors run along the rows, weights are broadcast.

In channels_first planes are read as they lie. Where rows fill whole vectors this suits depthwise and grouped layers,
and those that compute little: pointwise ones and stems. In channels_last they are made by transposing what a task
reads, which suits few filters: the lanes of vectors of filters would be idle.

Stages, each a block that a schedule places:

gather    a zero-padded copy of the rows a task or a tile reads, widened to the accumulator's type; phases of columns
          apart
conv      the sums of one register tile: `filters` x `rows` rows of `vectors` vectors
tile      the same on the stack, where rows do not fill whole tiles or filters lie innermost
out       bias, activation and store, narrowed to the user's type
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te

from tvm_conv3d.compute.llvm.variants import PlanesVariant
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.layout import grouped_input, grouped_output, grouped_reader, grouped_shape, in_layout
from tvm_conv3d.compute.shared.packing import Weights, bias_of_groups
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import error_of_sums, finish, reduction, window_extents, zero_padded
from tvm_conv3d.spec import CHANNELS_FIRST, Triple

#: Filters up to which planes are made in channels_last.
MAX_FILTERS = 4


def applies(spec: CanonicalSpec) -> bool:
    """Whether the layout is that of planes, or filters are so few that it pays to make them."""
    return spec.data_format == CHANNELS_FIRST or (spec.groups == 1 and spec.filters <= MAX_FILTERS)


def needs_gather(spec: CanonicalSpec, variant: PlanesVariant) -> bool:
    """Whether rows have to be copied: for layout, pads, strides, another type, or tiles that overhang the output."""
    _, height, width = spec.out_size
    return (
        spec.data_format != CHANNELS_FIRST
        or spec.pads != ((0, 0),) * 3
        or spec.strides[2] != 1
        or spec.dtype != spec.accumulator
        or height % variant.rows != 0
        or width % (variant.vectors * variant.lanes) != 0
    )


def declare(spec: CanonicalSpec, variant: PlanesVariant) -> Declaration:
    """The TE declaration; arguments as in :func:`tvm_conv3d.compute.llvm.direct.declare`.

    Raises:
        ValueError: the spec is in channels_last and has groups or many filters, or `variant` reads the input as it is
            although that won't do.
    """
    if not applies(spec):
        raise ValueError(f"In channels_last only few filters of one group are taken. Received: {spec.key()}")
    if not variant.gather and needs_gather(spec, variant):
        raise ValueError(f"{spec.key()} needs a padded copy of its input. Received: {variant}")
    acc, lanes, vectors, rows, filters = spec.accumulator, variant.lanes, variant.vectors, variant.rows, variant.filters
    depth, height, width = spec.out_size
    row_tiles, column_tiles, blocks = -(-height // rows), -(-width // (vectors * lanes)), _blocks(spec, variant)

    x = grouped_input(spec)
    kernel = te.placeholder((spec.groups, blocks, *spec.kernel, spec.group_channels, filters), acc, name="kernel")
    bias = te.placeholder((spec.groups, blocks, filters), acc, name="bias")
    read = (
        _gather(spec, x, (depth, row_tiles * rows), column_tiles * vectors * lanes)
        if variant.gather
        else _read(spec, x)
    )
    taps, channel = reduction(spec)
    steps = copied_steps(spec) if variant.gather else spec.strides

    def conv_at(n, g, b, d, ho, wo, fi, hi, v, lane):  # type: ignore[no-untyped-def]
        at_d = d * steps[0] + taps[0] * spec.dilation[0]
        at_h = (ho * rows + hi) * steps[1] + taps[1] * spec.dilation[1]
        away = taps[2] * spec.dilation[2]
        at_w = (wo * vectors + v) * lanes + lane + away // spec.strides[2]
        weight = kernel[(g, b, *taps, channel, fi)]
        return te.sum(read(n, g, channel, at_d, at_h, away % spec.strides[2], at_w) * weight, axis=[*taps, channel])

    shape = (spec.batch, spec.groups, blocks, depth, row_tiles, column_tiles, filters, rows, vectors, lanes)
    conv = te.compute(shape, conv_at, name="conv")
    tile = te.compute(shape, lambda *i: conv(*i), name="tile")

    residual = Residual(spec, grouped_shape(spec, spec.out_size, spec.groups, spec.group_filters))

    def out_at(n, g, f, d, h, w):  # type: ignore[no-untyped-def]
        b, fi, wo, wi = f // filters, f % filters, w // (vectors * lanes), w % (vectors * lanes)
        value = tile(n, g, b, d, h // rows, wo, fi, h % rows, wi // lanes, wi % lanes)
        return finish(spec, value, bias[g, b, fi], residual.at(*in_layout(spec, n, (g, f), (d, h, w))))

    return Declaration(
        (x, kernel, bias, *residual.tensors, grouped_output(spec, spec.groups, spec.group_filters, out_at))
    )


def declare_packing(spec: CanonicalSpec, variant: PlanesVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (groups, blocks, kd, kh, kw, channels of a group, filters of a tile).
        Bias (groups, blocks, filters of a tile).
    """
    blocks, filters, each = _blocks(spec, variant), variant.filters, spec.group_filters

    def kernel_at(group, block, d, h, w, channel, i):  # type: ignore[no-untyped-def]
        number = block * filters + i
        inside = [number < each] if each % filters else []
        return weights.kernel((d, h, w), channel, group * each + number, inside)

    kernel = te.compute(
        (spec.groups, blocks, *spec.kernel, spec.group_channels, filters), kernel_at, name=PACKED_KERNEL
    )
    return kernel, bias_of_groups(weights, spec, blocks, filters)


def error_bound(spec: CanonicalSpec, variant: PlanesVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, spec.group_channels * math.prod(spec.kernel))


def _blocks(spec: CanonicalSpec, variant: PlanesVariant) -> int:
    return -(-spec.group_filters // variant.filters)


def _read(s: CanonicalSpec, x: te.Tensor) -> Any:
    """Reads the input as it is, whose columns have one phase."""
    read = grouped_reader(s, x)
    return lambda n, g, c, d, h, _, w: read(n, d, h, w, g, c)


def copied_steps(s: CanonicalSpec) -> Triple:
    """Distance of neighbouring positions' windows in the copy, which of single taps holds only what is read."""
    depth, height, width = (1 if k == 1 else stride for k, stride in zip(s.kernel, s.strides, strict=True))
    return depth, height, width


def _gather(s: CanonicalSpec, x: te.Tensor, positions: tuple[int, int], length: int) -> te.Tensor:
    """The rows that the windows of so many output depths and rows see, with zeros around; phases of columns apart."""
    phases = s.strides[2]
    extents = window_extents(s, (*positions, 1))[:2]
    length += (s.window[2] - 1) // phases
    # distances, in the input, of neighbouring rows of the copy
    depth, height, _ = (stride // step for stride, step in zip(s.strides, copied_steps(s), strict=True))
    shape = ((extents[0] - 1) // depth + 1, (extents[1] - 1) // height + 1, phases, length)

    read = grouped_reader(s, x)

    def at(n, g, c, d, h, phase, w):  # type: ignore[no-untyped-def]
        position = (d * depth, h * height, w * phases + phase)
        return zero_padded(s, (*extents, length * phases), position, lambda place: read(n, *place, g, c))

    return te.compute((s.batch, s.groups, s.group_channels, *shape), at, name="gather")
