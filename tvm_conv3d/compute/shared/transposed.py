"""A transposed convolution, the gradient of a convolution's input, as a forward one.

By definition each input position adds its products to the positions of the result that lie under its window. Seen from
a position of the result: along an axis, the position at `window * stride + phase` takes tap t of the input position at
`window + offset`, where offset * stride = phase + pad before - t * dilation has a whole solution. So the positions of
one phase are a forward convolution of stride 1 with some of the taps, in reverse order, and with a stride of 1 there is
one phase only. All phases of all axes have as many windows, but for positions behind the result's end, and get a common
range of offsets; together they are one convolution whose filters are the channels of the result, once for each phase.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tvm_conv3d.spec import Conv3DSpec, Pads, Triple

#: Along one axis, by phase and tap of the forward convolution, the user's tap; None where there is none.
AxisTaps = tuple[tuple[int | None, ...], ...]


class Forward(NamedTuple):
    """A forward convolution that computes a transposed one.

    Attributes:
        spec: the convolution: of group by group, phase by phase, the channels of the result.
        phases: of each axis.
        taps: of each axis.
    """

    spec: Conv3DSpec
    phases: Triple
    taps: tuple[AxisTaps, AxisTaps, AxisTaps]


class _Axis(NamedTuple):
    taps: AxisTaps
    dilation: int
    pads: Pads


def forward(spec: Conv3DSpec) -> Forward:
    """The forward convolution that computes `spec`, a data gradient of an undilated input.

    Taps that see only padding are left out, as in :func:`tvm_conv3d.compute.shared.live_taps.trim`.
    """
    depth, height, width = (_axis(spec, axis) for axis in range(3))
    axes = depth, height, width
    phases = (len(depth.taps), len(height.taps), len(width.taps))
    kernel = (len(depth.taps[0]), len(height.taps[0]), len(width.taps[0]))
    convolution = Conv3DSpec(
        spec.batch,
        spec.out_size,
        channels=spec.filters,
        filters=spec.channels * math.prod(phases),
        kernel=kernel,
        dilation=(depth.dilation, height.dilation, width.dilation),
        pads=(depth.pads, height.pads, width.pads),
        groups=spec.groups,
        data_format=spec.data_format,
        dtype=spec.dtype,
        bias=spec.bias,
        post_ops=spec.post_ops,
    )
    return Forward(convolution, phases, tuple(axis.taps for axis in axes))  # type: ignore[arg-type]


def _axis(spec: Conv3DSpec, axis: int) -> _Axis:
    size, positions, stride = spec.size[axis], spec.out_size[axis], spec.strides[axis]
    # a result smaller than the stride has a phase for each of its positions
    phases, windows = max(1, min(stride, size)), -(-size // stride)
    found = {}
    for phase in range(phases):
        last = (size - 1 - phase) // stride
        for tap in range(spec.kernel[axis]):
            offset, rest = divmod(phase + spec.pads[axis].before - tap * spec.dilation[axis], stride)
            if rest == 0 and -last <= offset < positions:
                found[phase, offset] = tap
    # where no tap sees the input, one that is out of reach
    offsets = sorted({offset for _, offset in found}) or [-windows]
    first = offsets[0]
    apart = math.gcd(*(offset - first for offset in offsets)) or 1
    places = range(first, offsets[-1] + 1, apart)
    taps = tuple(tuple(found.get((phase, offset)) for offset in places) for phase in range(phases))
    return _Axis(taps, apart, Pads(-first, windows + offsets[-1] - positions))
