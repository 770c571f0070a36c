"""Which variants of the window kernel there are on a GPU, and which one is taken untuned."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tvm_conv3d.compute.cuda.window import WindowVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Filters of a group up to which a matrix product would compute mostly padding: of one group, and of several.
_FEW_FILTERS, _FEW_OF_GROUP = 8, 15


#: Channels of one group of several, below which the same holds of its reduction.
_FEW_CHANNELS = 8


#: Cells of the windows that one thread holds at a time.
_MAX_HELD = 48


#: Threads of a warp.
_WARP = 32


#: Positions of one thread along depth, height and width: fields of the variant.
_TILES = ("planes", "rows", "columns")


#: Filters of a thread, at most.
_LANES = 2


#: The share of the published peak, and of the bandwidth, that threads with their own windows reach.
_SHARE_OF_PEAK, _SHARE_OF_BANDWIDTH = 0.25, 0.8


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: WindowVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan: of its arithmetic or of its traffic with the memory, whichever is more."""
    results = math.prod(spec.output_shape)
    item = np.dtype(spec.accumulator).itemsize
    peak = 1e3 * traits.teraflops * (0.5 if item == 8 else 1.0)
    arithmetic = 2 * results * math.prod(spec.kernel) * spec.group_channels / (_SHARE_OF_PEAK * peak)
    moved = item * (results + math.prod(spec.input_shape)) / (_SHARE_OF_BANDWIDTH * traits.gigabytes)
    return {"windows": max(arithmetic, moved)}


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[WindowVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where groups have many filters."""
    found = variants(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[WindowVariant]:
    """The variants that compete while tuning, the default's first; none where groups have many filters."""
    few = spec.group_filters <= (_FEW_FILTERS if spec.groups == 1 else _FEW_OF_GROUP)
    if not few and (spec.groups == 1 or spec.group_channels >= _FEW_CHANNELS):
        return []
    lanes, axis = _lanes(spec), _axis(spec)
    found = []
    for cells in (4, 8, 2, 1):
        tile = {_TILES[axis]: cells} if cells > 1 else {}
        variant = WindowVariant(**{"rows": 1, "columns": 1, "lanes": lanes, **tile})
        threads = math.prod(spec.output_shape) / (cells * lanes)
        held = (cells - 1) * spec.strides[axis] + spec.window[axis]
        enough = threads >= traits.multiprocessors * traits.threads_per_multiprocessor / 4
        overlaps = spec.window[axis] > spec.strides[axis] and spec.dilation[axis] == 1
        wasted = -(-spec.out_size[axis] // cells) * cells / spec.out_size[axis]
        if cells == 1 or (enough and overlaps and held <= _MAX_HELD and wasted <= 1.34):
            found.append(variant)
    return found


def _axis(s: CanonicalSpec) -> int:
    """The axis along which a thread's positions lie: one that is not spread over neighbouring threads.

    Of several filters, which read the same, these have neighbouring columns. Where rows are so short that the threads
    of a warp span over two, tiles of rows lie apart in memory, tiles of planes side by side: these are taken where
    windows overlap along the depth at least as much.
    """
    last = s.data_format == CHANNELS_LAST
    if last and (s.groups > 1 or s.channels == 1):
        return 2
    overlap = [(reach - stride) / reach for reach, stride in zip(s.window, s.strides, strict=True)]
    deep = s.dilation[0] == 1 and s.out_size[0] > 1 and overlap[0] >= overlap[1]
    return 0 if not last and s.out_size[2] < _WARP // 2 and deep else 1


def _lanes(s: CanonicalSpec) -> int:
    """Filters of a thread: those whose channels of a half type fill a word, where they lie side by side."""
    together = s.data_format == CHANNELS_LAST and s.group_channels == s.group_filters == 1
    return math.gcd(_LANES, s.filters) if together and s.dtype != s.accumulator else 1
