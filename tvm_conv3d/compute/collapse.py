"""Axes that the window never mixes are merged, so that one loop tiles what were several short ones."""

from __future__ import annotations

from dataclasses import replace

from tvm_conv3d.compute.trim import trim
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec


def collapse(spec: Conv3DSpec) -> Conv3DSpec:
    """The same convolution of the seen taps on merged axes; buffers of input and output keep their bytes.

    Taps that no window lays on the input are left out first (:mod:`tvm_conv3d.compute.trim`).
    An axis is pointwise when kernel and stride are 1 and nothing is padded. A pointwise axis merges with the pointwise
    axis before it: a 1x1x1 convolution becomes one long row, a temporal one (k x 1 x 1) a plane of depth by rows.
    Batch merges into a pointwise depth only in channels_last, where no channel axis lies between them.
    """
    spec = trim(spec)
    pointwise = pointwise_axes(spec)
    batch, (depth, height, width) = spec.batch, spec.size
    if pointwise[1] and pointwise[2]:
        height, width = 1, height * width
    if pointwise[0] and height == 1 and pointwise[1] and pointwise[2]:
        depth, width = 1, depth * width
    elif pointwise[0] and pointwise[1]:
        depth, height = 1, depth * height
    if spec.data_format == CHANNELS_LAST and depth == 1 and all(pointwise):
        batch, width = 1, batch * width
    if pointwise[0] and not pointwise[1] and spec.data_format == CHANNELS_LAST:
        batch, depth = batch * depth, 1
    # the distance of a single tap means nothing
    first, second, third = (1 if kernel == 1 else d for kernel, d in zip(spec.kernel, spec.dilation, strict=True))
    return replace(spec, batch=batch, size=(depth, height, width), dilation=(first, second, third))


def pointwise_axes(spec: Conv3DSpec) -> list[bool]:
    """Along which axes kernel and stride are 1 and nothing is padded: each output cell sees its own input cell only."""
    return [
        kernel == stride == 1 and pads == (0, 0)
        for kernel, stride, pads in zip(spec.kernel, spec.strides, spec.pads, strict=True)
    ]
