"""Packed weights in NumPy: what compiled packing is compared with, and what plans are run on one by one.

Everything is said once more, by other means than the declarations in TE: of those only sizes are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tvm_conv3d.compute.cuda import implicit_gemm, winograd_extents
from tvm_conv3d.compute.shared.canonical import CanonicalSpec, canonicalize
from tvm_conv3d.compute.shared.cook_toom import transforms
from tvm_conv3d.compute.shared.transposed import AxisTaps
from tvm_conv3d.compute.shared.winograd_axes import Axes, axes_of
from tvm_conv3d.spec import CHANNELS_LAST, FORWARD, Conv3DSpec

#: Of an algorithm: (canonical problem, variant, its kernel or bias) -> packed.
Pack = Callable[[CanonicalSpec, Any, np.ndarray], np.ndarray]


def pack(
    algorithm: str, spec: Conv3DSpec, variant: Any, kernel: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias as the algorithm's convolution reads them.

    Args:
        algorithm: its name.
        spec: the problem.
        variant: of the algorithm.
        kernel: of `spec.kernel_shape`.
        bias: of `spec.result_channels` values; None for zeros.
    """
    canonical = canonicalize(spec)
    of_kernel, of_bias = _PACKS[algorithm]
    values = np.zeros(canonical.filters) if bias is None else filter_bias(canonical, bias)
    packed = of_kernel(canonical, variant, live_weights(canonical, kernel)), of_bias(canonical, variant, values)
    return np.ascontiguousarray(packed[0]), np.ascontiguousarray(packed[1])


def live_weights(spec: CanonicalSpec, kernel: np.ndarray) -> np.ndarray:
    """The canonical problem's weights (kd, kh, kw, channels of a group, filters), of the origin's."""
    if spec.origin.direction == FORWARD:
        depth, height, width = (slice(taps[0], taps[0] + len(taps)) for (taps,) in spec.taps)  # type: ignore[operator]
        return kernel[depth, height, width]
    # in the origin channels of the result stand before those that are read
    channels, read = spec.set_filters, spec.group_channels
    moved = kernel.reshape(*spec.origin.kernel, channels, spec.groups, read).transpose(0, 1, 2, 5, 4, 3)
    found = np.zeros((*spec.kernel, read, spec.groups, *spec.phases, channels), kernel.dtype)
    for phase in np.ndindex(*spec.phases):
        ours, theirs = zip(*map(_pairs, spec.taps, phase), strict=True)
        found[(..., *phase, slice(None))][np.ix_(*ours)] = moved[np.ix_(*theirs)]
    return found.reshape(*spec.kernel, read, spec.filters)


def filter_bias(spec: CanonicalSpec, bias: np.ndarray) -> np.ndarray:
    """The bias of each of the canonical problem's filters, of the origin's, one for each channel of its result."""
    by_group = bias.reshape(spec.groups, 1, spec.set_filters)
    return np.repeat(by_group, spec.phases_of_group, axis=1).ravel()


def _pairs(taps: AxisTaps, phase: int) -> tuple[list[int], list[int]]:
    """Taps of one phase along an axis, and the origin's taps that they are."""
    pairs = [(ours, theirs) for ours, theirs in enumerate(taps[phase]) if theirs is not None]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _in_blocks(spec: CanonicalSpec, values: np.ndarray, sets: int, size: int) -> np.ndarray:
    """Values (..., filters) as (..., sets, blocks of `size` filters, filters of a block), zeros past a set's last."""
    before, each = values.shape[:-1], values.shape[-1] // sets
    blocks = -(-each // size)
    padded = np.zeros((*before, sets, blocks * size), spec.accumulator)
    padded[..., :each] = values.reshape(*before, sets, each)
    return padded.reshape(*before, sets, blocks, size)


def _in_vectors(spec: CanonicalSpec, variant: Any, values: np.ndarray) -> np.ndarray:
    """Values (..., filters) as (..., interleaved sets, blocks, vectors, lanes), zeros where there is no filter."""
    interleaved, vectors, before = variant.interleaved, variant.vectors, values.shape[:-1]
    each = variant.lanes // interleaved
    blocked = _in_blocks(spec, values, spec.sets, vectors * each)
    apart = blocked.reshape(*before, spec.sets // interleaved, interleaved, -1, vectors, each)
    together = np.moveaxis(apart, -4, -1)
    return together.reshape(*together.shape[:-2], variant.lanes)


def _repeated(spec: CanonicalSpec, variant: Any, values: np.ndarray) -> np.ndarray:
    """Values (..., channels) as (..., vectors, lanes), again and again until vectors repeat or a row of tasks ends."""
    task = variant.lanes * variant.vectors
    row = -(-spec.out_size[2] * spec.channels // task) * task
    count = min(math.lcm(spec.channels, variant.lanes), row)
    found = values.astype(spec.accumulator)[..., np.arange(count) % spec.channels]
    return found.reshape(*values.shape[:-1], -1, variant.lanes)


def _phases_apart(axes: Axes, kernel: np.ndarray) -> np.ndarray:
    """Weights (kd, kh, kw, channels, filters) as (taps along depth, height, width, gathered channels, filters)."""
    sizes = tuple(t * p for t, p in zip(axes.taps, axes.phases, strict=True))
    padded = np.zeros((*sizes, *kernel.shape[3:]))
    kd, kh, kw = kernel.shape[:3]
    padded[:kd, :kh, :kw] = kernel
    split = padded.reshape(*(n for pair in zip(axes.taps, axes.phases, strict=True) for n in pair), *padded.shape[3:])
    return split.transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(*axes.taps, -1, kernel.shape[4])


def _transformed(taps: np.ndarray, tile: Sequence[int], strides: Sequence[int] = (1, 1, 1)) -> np.ndarray:
    """:func:`_phases_apart` transformed in float64: (frequencies along depth, height, width, channels, filters)."""
    for axis, size in enumerate(zip(tile, taps.shape[:3], strides, strict=True)):
        matrix = np.array(transforms(*size).kernel, dtype=np.float64)
        taps = np.moveaxis(np.tensordot(matrix, taps, (1, axis)), 0, axis)
    return taps


def _direct_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    return _in_vectors(spec, variant, kernel).transpose(4, 5, 0, 1, 2, 3, 6, 7)


def _grouped_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    if variant.shuffled:
        # the channel that a lane meets is its own, with the bits of the step flipped
        step, lane = np.ogrid[: kernel.shape[3], : spec.filters]
        kernel = np.take_along_axis(kernel, (lane % kernel.shape[3] ^ step)[None, None, None], 3)
    return np.moveaxis(_in_blocks(spec, kernel, 1, variant.lanes)[..., 0, :, :], 4, 0)


def _depthwise_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(_repeated(spec, variant, kernel[:, :, :, 0]), 3, 0)


def _planes_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    return _in_blocks(spec, kernel, spec.groups, variant.filters).transpose(4, 5, 0, 1, 2, 3, 6)


def _winograd_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    axes = axes_of(spec, variant.modes)
    taps = _transformed(_phases_apart(axes, kernel), variant.tile, axes.strides)
    blocked = _in_vectors(spec, variant, taps).transpose(0, 1, 2, 4, 5, 3, 6, 7)
    return blocked.reshape(*blocked.shape[:3], -1, *blocked.shape[5:])


def _winograd_rows_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    matrix = np.array(transforms(variant.tile, spec.kernel[2]).kernel, dtype=np.float64)
    sums = np.tensordot(matrix, kernel.astype(np.float64), (1, 2))
    return np.moveaxis(_in_blocks(spec, sums, 1, variant.lanes)[..., 0, :, :], 4, 0)


def _gemm_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    e = implicit_gemm.extents_of(spec, variant)
    taps, steps = e.taps, e.steps * variant.step
    padded = np.zeros((*taps, steps, spec.filters))
    if variant.flat and spec.data_format != CHANNELS_LAST and not variant.turned:
        # taps are neighbours in memory, and in the flattened reduction
        vectors = kernel.reshape(math.prod(spec.kernel), -1, variant.vector, spec.filters)
        kernel = vectors.transpose(1, 0, 2, 3)
    padded[..., : e.terms, :] = kernel.reshape(*taps, e.terms, spec.filters)
    blocked = _in_blocks(spec, padded, spec.sets, variant.filters)
    return blocked.reshape(*taps, e.steps, variant.step, *blocked.shape[4:]).transpose(5, 6, 0, 1, 2, 3, 4, 7)


def _tensor_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    half = ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.float16
    return _gemm_kernel(spec, variant, kernel).astype(half)


def _window_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    # channels of a group lie in fours where the input's do, and fours are whole
    lanes = 4 if spec.data_format == CHANNELS_LAST and spec.group_channels % 4 == 0 else 1
    vectors = kernel.reshape(*kernel.shape[:3], -1, lanes, spec.filters)
    return vectors.transpose(0, 3, 1, 2, 5, 4).astype(spec.accumulator)


def _winograd_gemm_kernel(spec: CanonicalSpec, variant: Any, kernel: np.ndarray) -> np.ndarray:
    """Weights transformed as the product reads them, then as they were."""
    e = winograd_extents.extents_of(spec, variant)
    plain = _phases_apart(e.axes, kernel)
    # an untransformed depth keeps its taps
    parts = [plain] if variant.tile[0] > 1 else [plain[i : i + 1] for i in range(e.taps)]
    there = np.stack([_transformed(part, variant.tile) for part in parts], axis=3)
    channels, filters = plain.shape[3:]
    both = np.concatenate([there.reshape(-1, channels, filters), plain.reshape(-1, channels, filters)])
    padded = np.zeros((len(both), e.steps * variant.step, filters))
    padded[:, :channels] = both
    return _in_blocks(spec, padded, 1, variant.filters)[..., 0, :, :].transpose(0, 2, 1, 3)


def _tile_bias(spec: CanonicalSpec, variant: Any, bias: np.ndarray) -> np.ndarray:
    return _in_blocks(spec, bias, spec.sets, variant.filters)


def _lane_bias(spec: CanonicalSpec, variant: Any, bias: np.ndarray) -> np.ndarray:
    return _in_blocks(spec, bias, 1, variant.lanes)[0]


#: Algorithm -> how its kernel and its bias are packed.
_PACKS: dict[str, tuple[Pack, Pack]] = {
    "direct": (_direct_kernel, _in_vectors),
    "grouped": (_grouped_kernel, _lane_bias),
    "depthwise": (_depthwise_kernel, _repeated),
    "planes": (_planes_kernel, _tile_bias),
    "winograd": (_winograd_kernel, lambda spec, variant, bias: _lane_bias(spec, variant, bias).ravel()),
    "winograd_rows": (_winograd_rows_kernel, _lane_bias),
    "gemm": (_gemm_kernel, _tile_bias),
    "tensor_gemm": (_tensor_kernel, _tile_bias),
    "window": (_window_kernel, lambda spec, variant, bias: bias.astype(spec.accumulator)),
    "winograd_gemm": (_winograd_gemm_kernel, lambda spec, variant, bias: _tile_bias(spec, variant, bias).ravel()),
}
