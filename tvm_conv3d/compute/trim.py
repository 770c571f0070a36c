"""Taps that no output cell sees, as they lie in the padding of every window, are left out, and their padding with them.

Small extents and large dilations make such taps: on an input of 1x1x1 a padded 3x3x3 convolution is a matrix product,
and with a dilation of 100 on eight cells only the middle tap is left. What padding remains is bounded by the extents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tvm_conv3d.spec import Conv3DSpec, Pads


@dataclass(frozen=True)
class TrimmedSpec(Conv3DSpec):
    """A problem without its unseen taps. Pads may be negative: so many cells of the input no window reads."""

    def _check_pads(self) -> None:
        """Nothing is refused: the pads follow from a checked spec's."""


def seen_taps(spec: Conv3DSpec) -> tuple[range, range, range]:
    """From the first to the last tap that sees the input in any window, per axis; one tap where none does."""
    depth, height, width = (_seen(spec, axis) for axis in range(3))
    return depth, height, width


def trim(spec: Conv3DSpec) -> Conv3DSpec:
    """The same convolution by :func:`seen_taps` only, an axis of one window without its stride.

    Returns:
        `spec` itself where nothing changes.
    """
    if spec.empty:
        return spec
    taps = seen_taps(spec)
    changes: dict[str, Any] = {
        "kernel": tuple(map(len, taps)),
        "pads": tuple(_pads(spec, axis, taps[axis]) for axis in range(3)),
        # a window that makes no step makes none of any length
        "strides": tuple(_stride(spec, axis) for axis in range(3)),
    }
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    return TrimmedSpec(**{**values, **changes}) if changes.items() - values.items() else spec


def trim_kernel(spec: Conv3DSpec, kernel: np.ndarray) -> np.ndarray:
    """The weights of :func:`seen_taps`: (kd, kh, kw, ...) with smaller kd, kh, kw, a view."""
    depth, height, width = seen_taps(spec)
    return kernel[depth.start : depth.stop, height.start : height.stop, width.start : width.stop]


def windows_that_see(spec: Conv3DSpec, axis: int, tap: int) -> int:
    """In how many of an axis's windows a tap lies on the input."""
    stride, cells = spec.strides[axis], spec.out_size[axis]
    offset = tap * spec.dilation[axis] - spec.pads[axis].before
    first = max(0, -(offset // stride))
    last = min(cells - 1, (spec.size[axis] - 1 - offset) // stride)
    return max(0, last - first + 1)


def _seen(spec: Conv3DSpec, axis: int) -> range:
    taps = spec.kernel[axis]
    seen = range(taps) if spec.empty else [tap for tap in range(taps) if windows_that_see(spec, axis, tap)]
    return range(seen[0], seen[-1] + 1) if seen else range(1)


def _stride(spec: Conv3DSpec, axis: int) -> int:
    return 1 if spec.out_size[axis] == 1 else spec.strides[axis]


def _pads(spec: Conv3DSpec, axis: int, taps: range) -> Pads:
    """Pads that leave each tap where it was; before the input, just out of reach, where none is seen."""
    reach = (spec.out_size[axis] - 1) * spec.strides[axis] + 1
    before = reach
    if windows_that_see(spec, axis, taps.start):
        if len(taps) == spec.kernel[axis] and _stride(spec, axis) == spec.strides[axis]:
            return spec.pads[axis]
        before = spec.pads[axis].before - taps.start * spec.dilation[axis]
    return Pads(before, reach + (len(taps) - 1) * spec.dilation[axis] - before - spec.size[axis])
