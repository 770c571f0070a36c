"""What the axes of a convolution become before Winograd's algorithm takes them, by a mode of each:

plain     F(m, k); stride 1. With k = 1 the axis needs no transform.
strided   space to depth: the stride's phases become channels, leaving F(m, ceil(k / stride)) at stride 1.
folded    the taps become channels (im2col along this axis): any stride and dilation, no transform.
polyphase transformed as it is: F(m, k) with stride, a product for each input position, none with a tap of zeros.
dilated   every dilation-th position makes a convolution of its own without dilation: F(m, k) on each of these parts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.spec import Triple

PLAIN, STRIDED, POLYPHASE, FOLDED, DILATED = "p", "s", "y", "f", "d"


@dataclass(frozen=True)
class Axes:
    """A convolution after strides and folded taps have become channels.

    Attributes:
        taps: of the remaining kernel, per axis.
        strides: gathered positions between the windows of neighbouring outputs, per axis; 1 but for polyphase ones.
        phases: channels that one input position's channels became, per axis.
        step: input positions between gathered positions, per axis.
        spread: input positions between phases, per axis.
        parts: interleaved convolutions that are computed apart, per axis; the last ones may have a position less.
        channels: of a gathered position, before padding to whole vectors.
    """

    taps: Triple
    strides: Triple
    phases: Triple
    step: Triple
    spread: Triple
    parts: Triple
    channels: int

    def part_size(self, outputs: Sequence[int]) -> Triple:
        """Output positions of the largest part, per axis, of so many in all."""
        return triple([-(-count // parts) for count, parts in zip(outputs, self.parts, strict=True)])

    def cells(self, outputs: Sequence[int]) -> Triple:
        """Gathered positions that the windows of so many outputs cover, per axis; of a tile: its frequencies."""
        sides = zip(outputs, self.strides, self.taps, strict=True)
        return triple([(count - 1) * stride + taps for count, stride, taps in sides])


@functools.lru_cache(maxsize=1024)
def axes_of(spec: CanonicalSpec, modes: str) -> Axes:
    """How `modes` change the axes of `spec`.

    Raises:
        ValueError: a mode does not suit its axis: plain needs stride and dilation 1, strided and polyphase dilation 1,
            dilated stride 1.
    """
    taps, strides, phases, step, spread, parts = [], [], [], [], [], []
    sides = zip(modes, spec.kernel, spec.strides, spec.dilation, strict=True)
    for mode, kernel, stride, dilation in sides:
        if (mode in (PLAIN, DILATED) and stride > 1) or (mode in (PLAIN, STRIDED, POLYPHASE) and dilation > 1):
            raise ValueError(f"Mode {mode!r} needs another stride or dilation. Received: {modes} for {spec.key()}")
        taps.append({STRIDED: -(-kernel // stride), FOLDED: 1}.get(mode, kernel))
        strides.append(stride if mode == POLYPHASE else 1)
        phases.append({STRIDED: stride, FOLDED: kernel}.get(mode, 1))
        step.append({DILATED: dilation, STRIDED: stride, FOLDED: stride}.get(mode, 1))
        spread.append(dilation if mode == FOLDED else 1)
        parts.append(dilation if mode == DILATED else 1)
    channels = spec.channels * math.prod(phases)
    return Axes(triple(taps), triple(strides), triple(phases), triple(step), triple(spread), triple(parts), channels)


def triple(values: Sequence[int]) -> Triple:
    """Three integers, a value for each axis."""
    first, second, third = values
    return int(first), int(second), int(third)
