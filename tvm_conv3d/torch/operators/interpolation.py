"""Nearest and trilinear resampling as an operator of torch's, `torch.ops.tvm_conv3d.interpolation`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tvm_conv3d.functional import interpolation
from tvm_conv3d.spec.interpolation import MODES, NEAREST, TRILINEAR, Interpolation
from tvm_conv3d.torch.operators import registration
from tvm_conv3d.torch.operators.memory import channels_inside
from tvm_conv3d.torch.operators.registration import triple


def _ours(x: Tensor, size: Sequence[int], scales: Sequence[float], mode: str, align_corners: bool) -> Tensor | str:
    reason = registration.why_torch((x,))
    if reason is not None:
        return reason
    try:
        sizes = triple("input", x.shape[2:]), triple("size", size)
        spec = Interpolation(mode, *sizes, tuple(scales), align_corners)
        array, restore = channels_inside(x)
        return restore(interpolation.interpolate(array, spec))
    except ValueError as error:
        return str(error)


def _theirs(x: Tensor, size: Sequence[int], scales: Sequence[float], mode: str, align_corners: bool) -> Tensor:
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: {mode!r}")
    if len(scales) not in (0, 3):
        raise ValueError(f"`scales` must be three numbers, or none. Received: {list(scales)}")
    if align_corners and mode == NEAREST:
        raise ValueError(f"`align_corners` is for {TRILINEAR!r}. Received: mode={mode!r}, align_corners=True")
    function, corners = (
        (torch.ops.aten.upsample_nearest3d, ())
        if mode == NEAREST
        else (torch.ops.aten.upsample_trilinear3d, (align_corners,))
    )
    # the overload that compilers derive at any size takes either a size or scales
    return function.default(x, size, *corners, *scales) if scales else function.vec(x, size, *corners, None)


#: The operator. `mode` is "nearest" or "trilinear", `size` that of the result. `scales` are three factors by which
#: coordinates are computed, as by `torch.nn.functional.interpolate` with its `scale_factor`; without them it is by the
#: ratio of the sizes.
INTERPOLATION = registration.register(
    "interpolation(Tensor input, int[] size, float[] scales, str mode, bool align_corners) -> Tensor", _ours, _theirs
)
