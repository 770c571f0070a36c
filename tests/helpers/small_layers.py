"""Small layers of all kinds that the benchmark compares."""

from __future__ import annotations

from dataclasses import replace

from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, Conv3DSpec, same_padding


def same_spec(size=(5, 6, 7), channels=4, filters=6, kernel=(3, 2, 3), strides=(1, 1, 1), dilation=(1, 1, 1), **more):
    pads = same_padding(size, kernel, strides, dilation)
    return Conv3DSpec(2, size, channels, filters, kernel, strides, dilation, pads, post_ops=("relu",), **more)


SPECS = [
    same_spec(),
    same_spec(strides=(2, 1, 3)),
    same_spec(dilation=(2, 1, 2)),
    same_spec(groups=2),
    same_spec(channels=6, groups=6),
    same_spec(groups=2, data_format=CHANNELS_FIRST),
    replace(same_spec(), pads=NO_PADS),
]
