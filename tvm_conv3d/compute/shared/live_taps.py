"""Dead taps, which lie in the padding of every window, are left out, and their padding with them; live taps are left.

Small extents and large dilations make such taps: on an input of 1x1x1 a padded 3x3x3 convolution is a matrix product,
and with a dilation of 100 on eight positions only the middle tap is left. What padding remains is bounded by the
extents.
"""

from __future__ import annotations

from dataclasses import replace

from tvm_conv3d.spec import Conv3DSpec, Pads


def live_taps(spec: Conv3DSpec) -> tuple[range, range, range]:
    """From the first to the last tap that sees the input in any window, per axis; one tap where none does."""
    depth, height, width = (_live(spec, axis) for axis in range(3))
    return depth, height, width


def drop_dead_taps(spec: Conv3DSpec) -> Conv3DSpec:
    """The same forward convolution by :func:`live_taps` only, an axis of one window without its stride.

    Pads may become negative: so many positions of the input no window reads.
    """
    if spec.empty:
        return spec
    taps = live_taps(spec)
    kd, kh, kw = map(len, taps)
    depth, height, width = (_pads(spec, axis, taps[axis]) for axis in range(3))
    # a window that makes no step makes none of any length
    strides = (_stride(spec, 0), _stride(spec, 1), _stride(spec, 2))
    return replace(spec, kernel=(kd, kh, kw), pads=(depth, height, width), strides=strides)


def _live(spec: Conv3DSpec, axis: int) -> range:
    taps = spec.kernel[axis]
    seen = range(taps) if spec.empty else [tap for tap in range(taps) if spec.live_windows(axis, tap)]
    return range(seen[0], seen[-1] + 1) if seen else range(1)


def _stride(spec: Conv3DSpec, axis: int) -> int:
    return 1 if spec.out_size[axis] == 1 else spec.strides[axis]


def _pads(spec: Conv3DSpec, axis: int, taps: range) -> Pads:
    """Pads that leave each tap where it was; before the input, just out of reach, where none is live."""
    reach = (spec.out_size[axis] - 1) * spec.strides[axis] + 1
    before = reach
    if spec.live_windows(axis, taps.start):
        if len(taps) == spec.kernel[axis] and _stride(spec, axis) == spec.strides[axis]:
            return spec.pads[axis]
        before = spec.pads[axis].before - taps.start * spec.dilation[axis]
    return Pads(before, reach + (len(taps) - 1) * spec.dilation[axis] - before - spec.size[axis])
