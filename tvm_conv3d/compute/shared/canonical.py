"""The canonical form of a problem: what declarations, schedules and cost models take.

It is a forward convolution; that of a transposed one computes the phases of the result side by side
(:mod:`tvm_conv3d.compute.shared.transposed`). Taps that no window lays on the input are left out
(:mod:`tvm_conv3d.compute.shared.live_taps`), but of a gradient of weights, which has zeros there. Axes that the window
never mixes are merged, so that one loop tiles what were several short ones. Buffers of input and output keep their
bytes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields, replace

from tvm_conv3d.compute.shared.live_taps import drop_dead_taps, live_taps
from tvm_conv3d.compute.shared.transposed import AxisTaps, Forward, forward
from tvm_conv3d.spec import CHANNELS_LAST, DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT, Conv3DSpec, Convolution, Triple

#: Canonical forms that are kept.
_MAX_KEPT = 1024


@dataclass(frozen=True)
class CanonicalSpec(Convolution):
    """A forward convolution in its canonical form, made by :func:`canonicalize` only.

    Its fields are those of a :class:`~tvm_conv3d.spec.Conv3DSpec`, of the merged axes and of the taps that are left; it
    is no such spec, as the two must not be taken for each other. Where there are phases, its filters are those of a
    group, phase by phase: filter c of phase (p, q, r), at window (d, h, w), is channel c of the result at
    (d * phases[0] + p, h * phases[1] + q, w * phases[2] + r), if that exists.

    Attributes:
        origin: the problem that it was made from.
        taps: for each axis, by phase and tap, the origin's tap; None where it has none.
        phases: of each axis, 1 but in transposed convolutions with strides.
    """

    origin: Conv3DSpec = field(kw_only=True)
    taps: tuple[AxisTaps, AxisTaps, AxisTaps] = field(kw_only=True)
    phases: Triple = field(kw_only=True)

    @functools.cached_property
    def sets(self) -> int:
        """Sets of filters, each of one group and one phase."""
        return self.groups * self.phases_of_group

    @property
    def set_filters(self) -> int:
        """Filters of a set."""
        return self.filters // self.sets

    @functools.cached_property
    def phases_of_group(self) -> int:
        """Phases of all axes together."""
        return math.prod(self.phases)

    @property
    def phased(self) -> bool:
        """Whether there are phases, so that windows and positions of the result are not the same."""
        return self.phases_of_group > 1

    @functools.cached_property
    def result_size(self) -> Triple:
        """Depth, height, width of the result, its axes merged: not of whole phases where strides leave a rest."""
        d, h, w = (
            size if phases > 1 else windows
            for size, windows, phases in zip(self.origin.size, self.out_size, self.phases, strict=True)
        )
        return d, h, w

    @property
    def weights_identity(self) -> tuple[object, ...]:
        """Equal where the same weights of the origin stand in the same places."""
        return self.origin.direction, self.phases, self.taps

    @property
    def packing_identity(self) -> dict[str, object]:
        """What packing depends on besides the variant and the shapes that it gives: no sizes, and no post-ops."""
        sizes = {"batch", "size", "pads", "data_format", "post_ops"}
        own = {f.name: getattr(self, f.name) for f in fields(Convolution) if f.name not in sizes}
        kernel, channels = self.origin.kernel_shape, self.origin.result_channels
        return {**own, "origin": [kernel, channels], "places": self.weights_identity}

    def __hash__(self) -> int:
        return hash(self.origin)

    def key(self) -> str:
        """The key of the problem that it was made from, for messages."""
        return self.origin.key()


@functools.lru_cache(maxsize=_MAX_KEPT)
def canonicalize(spec: Conv3DSpec) -> CanonicalSpec:
    """The canonical form of `spec`.

    An axis is pointwise when kernel and stride are 1, nothing is padded and the result has no phases. A pointwise axis
    merges with the pointwise axis before it: a 1x1x1 convolution becomes one long row, a temporal one (k x 1 x 1) a
    plane of depth by rows. Batch merges into a pointwise depth only in channels_last, where no channel axis lies
    between them.

    Raises:
        ValueError: the problem has a dilated input or tensors of several types, for which there is no algorithm.
    """
    found = forward_of(spec)
    trimmed, phases = found.spec, found.phases
    first, second, third = (alone and count == 1 for alone, count in zip(trimmed.pointwise, phases, strict=True))
    batch, (depth, height, width) = trimmed.batch, trimmed.size
    if second and third:
        height, width = 1, height * width
    if first and height == 1 and second and third:
        depth, width = 1, depth * width
    elif first and second:
        depth, height = 1, depth * height
    last = trimmed.data_format == CHANNELS_LAST
    if last and depth == 1 and first and second and third:
        batch, width = 1, batch * width
    if last and first and not second:
        batch, depth = batch * depth, 1
    # the distance of a single tap means nothing
    dilation = tuple(1 if kernel == 1 else d for kernel, d in zip(trimmed.kernel, trimmed.dilation, strict=True))
    common = {f.name: getattr(trimmed, f.name) for f in fields(Convolution)}
    merged = {"batch": batch, "size": (depth, height, width), "dilation": dilation}
    return CanonicalSpec(**{**common, **merged}, origin=spec, taps=found.taps, phases=phases)


def forward_of(spec: Conv3DSpec) -> Forward:
    """The forward convolution that computes `spec`, or whose weights' gradient it is; its axes are not merged.

    Raises:
        ValueError: as :func:`canonicalize`.
    """
    if not replace(spec, direction=FORWARD).plain:
        raise ValueError(
            "There are algorithms for convolutions and gradients of undilated inputs only, with input, weights and "
            f"output of one type. Received: {spec.key()}"
        )
    if spec.direction == DATA_GRADIENT:
        return forward(spec)
    if spec.direction == WEIGHT_GRADIENT:
        depth, height, width = ((tuple(range(count)),) for count in spec.kernel)
        return Forward(replace(spec, direction=FORWARD), (1, 1, 1), (depth, height, width))
    depth, height, width = ((tuple(taps),) for taps in live_taps(spec))
    return Forward(drop_dead_taps(spec), (1, 1, 1), (depth, height, width))
