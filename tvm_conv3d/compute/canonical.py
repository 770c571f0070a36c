"""The canonical form of a problem: what declarations, schedules and cost models take.

Taps that no window lays on the input are left out (:mod:`tvm_conv3d.compute.trim`), and axes that the window never
mixes are merged, so that one loop tiles what were several short ones. Buffers of input and output keep their bytes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields

import numpy as np

from tvm_conv3d.compute.trim import seen_taps, trim
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec, Convolution

#: Canonical forms that are kept.
_MAX_KEPT = 1024

Taps = tuple[range, range, range]


@dataclass(frozen=True)
class CanonicalSpec(Convolution):
    """A forward convolution in its canonical form, made by :func:`canonicalize` only.

    Its fields are those of a :class:`~tvm_conv3d.spec.Conv3DSpec`, of the merged axes and of the taps that are left; it
    is no such spec, as the two must not be taken for each other.

    Attributes:
        origin: the problem that it was made from.
        taps: from the first to the last of the origin's taps that are left, per axis.
    """

    origin: Conv3DSpec = field(kw_only=True)
    taps: Taps = field(kw_only=True)

    def trimmed(self, kernel: np.ndarray) -> np.ndarray:
        """The weights of :attr:`taps`: (kd, kh, kw, ...) with smaller kd, kh, kw, a view."""
        depth, height, width = self.taps
        return kernel[depth.start : depth.stop, height.start : height.stop, width.start : width.stop]

    def __hash__(self) -> int:
        return hash(self.origin)

    def key(self) -> str:
        """The key of the problem that it was made from, for messages."""
        return self.origin.key()


@functools.lru_cache(maxsize=_MAX_KEPT)
def canonicalize(spec: Conv3DSpec) -> CanonicalSpec:
    """The canonical form of `spec`.

    An axis is pointwise when kernel and stride are 1 and nothing is padded. A pointwise axis merges with the pointwise
    axis before it: a 1x1x1 convolution becomes one long row, a temporal one (k x 1 x 1) a plane of depth by rows.
    Batch merges into a pointwise depth only in channels_last, where no channel axis lies between them.

    Raises:
        ValueError: the problem is a gradient, has a dilated input or tensors of several types, for which there is no
            algorithm.
    """
    if not spec.plain:
        raise ValueError(
            "There are algorithms for forward convolutions of undilated inputs only, with input, weights and output of "
            f"one type. Received: {spec.key()}"
        )
    trimmed = trim(spec)
    pointwise = trimmed.pointwise
    batch, (depth, height, width) = trimmed.batch, trimmed.size
    if pointwise[1] and pointwise[2]:
        height, width = 1, height * width
    if pointwise[0] and height == 1 and pointwise[1] and pointwise[2]:
        depth, width = 1, depth * width
    elif pointwise[0] and pointwise[1]:
        depth, height = 1, depth * height
    if trimmed.data_format == CHANNELS_LAST and depth == 1 and all(pointwise):
        batch, width = 1, batch * width
    if pointwise[0] and not pointwise[1] and trimmed.data_format == CHANNELS_LAST:
        batch, depth = batch * depth, 1
    # the distance of a single tap means nothing
    dilation = tuple(1 if kernel == 1 else d for kernel, d in zip(trimmed.kernel, trimmed.dilation, strict=True))
    common = {f.name: getattr(trimmed, f.name) for f in fields(Convolution)}
    merged = {"batch": batch, "size": (depth, height, width), "dilation": dilation}
    return CanonicalSpec(**{**common, **merged}, origin=spec, taps=seen_taps(spec))
