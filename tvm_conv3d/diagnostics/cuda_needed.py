"""What a convolution needs of the sectors of its input: where it passes over elements, no request can do with fewer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec, canonicalize
from tvm_conv3d.compute.shared.elements import storage_dtype
from tvm_conv3d.diagnostics.cuda_lanes import SECTOR, bytes_of
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import CHANNELS_LAST


def needed_shares(plan: Plan) -> dict[str, float]:
    """:func:`needed_share` by the name of the buffer, for :func:`tvm_conv3d.diagnostics.cuda_accesses.accesses_of`."""
    by_taps = plan.algorithm in ("gemm", "tensor_gemm") and not plan.variant.flat  # type: ignore[attr-defined]
    return {"x": needed_share(canonicalize(plan.spec), by_taps)}


def needed_share(spec: CanonicalSpec, by_taps: bool) -> float:
    """The share of bytes that the convolution needs of the sectors of its input in which it needs any.

    However the needed elements are dealt out to requests, these move at least 1/share as many bytes.

    Args:
        spec: the problem.
        by_taps: whether taps are the turns of a loop, so that no request asks for elements of two: then it is the share
            of the tap whose elements fill their sectors best.
    """
    item = bytes_of(storage_dtype(spec.dtype))
    # after so many planes of positions, or rows of channels, all begin at the same place of a sector again
    period = SECTOR // item
    height, width = spec.size[1:]
    last = spec.data_format == CHANNELS_LAST
    taps = list(itertools.product(*(range(k) for k in spec.kernel)))
    found = []
    for together in [[tap] for tap in taps] if by_taps else [taps]:
        d, h, w = (_needed(spec, axis, {tap[axis] for tap in together}) for axis in range(3))
        planes, rows = np.ix_(d[:period], h, w), spec.channels if last else 1
        position = (planes[0] * height + planes[1]) * width + planes[2]
        first = np.arange(rows) if last else np.arange(min(period, spec.channels)) * math.prod(spec.size)
        elements = position[..., None] * rows + first
        if elements.size:
            found.append(elements.size / (period * np.unique(elements // period).size))
    return max(found, default=1.0)


def _needed(spec: CanonicalSpec, axis: int, taps: Collection[int]) -> Any:
    """Positions of the input along an axis that the windows' elements under these taps lie at."""
    corners = np.arange(spec.out_size[axis]) * spec.strides[axis] - spec.pads[axis][0]
    under = np.unique([corners + tap * spec.dilation[axis] for tap in taps])
    return under[(under >= 0) & (under < spec.size[axis])]
