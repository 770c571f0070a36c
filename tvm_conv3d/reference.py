"""An independent oracle: convolution in float64 NumPy, from the definition alone.

It shares no code with the compiled kernels and is what their numbers are judged by: in the tests, before a benchmark
is timed, and before a tuning record is written.
"""

from __future__ import annotations

import numpy as np

from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec

#: Input cells that :func:`convolve_at` gathers at a time, to bound its memory.
_PATCH_CELLS = 1 << 22


def convolve(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The convolution of `spec` without its activation, as a sum over taps.

    Args:
        spec: the problem; its activation and dtype are ignored.
        x: input of `spec.input_shape`, any real dtype.
        kernel: weights of `spec.kernel_shape`.
        bias: `spec.filters` values, or None.

    Returns:
        float64 array of `spec.output_shape`.
    """
    x = np.asarray(x).astype(np.float64)
    kernel = np.asarray(kernel).astype(np.float64)
    if spec.data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    x = np.pad(x, ((0, 0), *spec.pads, (0, 0)))
    out = np.zeros((spec.batch, *spec.out_size, spec.filters))
    if spec.empty:
        return out.reshape(spec.output_shape)
    channels, filters = spec.group_channels, spec.group_filters
    for tap in np.ndindex(*spec.kernel):
        window = x[(slice(None), *(_taps(spec, axis, tap[axis]) for axis in range(3)))]
        for group in range(spec.groups):
            into = slice(group * filters, (group + 1) * filters)
            out[..., into] += window[..., group * channels : (group + 1) * channels] @ kernel[(*tap, slice(None), into)]
    if bias is not None:
        out += np.asarray(bias).astype(np.float64)
    return np.moveaxis(out, -1, 1) if spec.data_format == CHANNELS_FIRST else out


def convolve_at(
    spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, positions: np.ndarray
) -> np.ndarray:
    """The convolution of `spec` without its activation, at some output positions: for layers too large to do whole.

    Args:
        spec, x, kernel, bias: as in :func:`convolve`.
        positions: integers (count, 4): sample, depth, height and width of each wanted output cell.

    Returns:
        float64 array (count, filters).
    """
    x = np.asarray(x)
    if spec.data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    x = np.pad(x, ((0, 0), *spec.pads, (0, 0)))
    taps = int(np.prod(spec.kernel))
    by_tap = np.asarray(kernel).astype(np.float64).reshape(taps, spec.group_channels, spec.groups, spec.group_filters)
    weights = by_tap.transpose(2, 0, 1, 3).reshape(spec.groups, taps * spec.group_channels, spec.group_filters)
    out = np.empty((len(positions), spec.filters))
    chunk = max(1, _PATCH_CELLS // (taps * spec.channels))
    for start in range(0, len(positions), chunk):
        n, *corner = positions[start : start + chunk].T
        d, h, w = (
            corner[axis][:, None] * spec.strides[axis] + np.arange(spec.kernel[axis]) * spec.dilation[axis]
            for axis in range(3)
        )
        cells = x[n[:, None, None, None], d[:, :, None, None], h[:, None, :, None], w[:, None, None, :]]
        patches = cells.astype(np.float64).reshape(len(n), taps, spec.groups, spec.group_channels)
        patches = patches.transpose(2, 0, 1, 3).reshape(spec.groups, len(n), -1)
        out[start : start + chunk] = (patches @ weights).transpose(1, 0, 2).reshape(len(n), spec.filters)
    return out if bias is None else out + np.asarray(bias).astype(np.float64)


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """||result - expected|| / ||expected|| in the 2-norm; the plain norm of the difference where `expected` is 0."""
    expected = np.asarray(expected, np.float64)
    difference = float(np.linalg.norm(np.asarray(result).astype(np.float64).ravel() - expected.ravel()))
    scale = float(np.linalg.norm(expected.ravel()))
    return difference / scale if scale else difference


def _taps(spec: Conv3DSpec, axis: int, tap: int) -> slice:
    """The padded input's cells under tap number `tap`, one for each output cell."""
    start = tap * spec.dilation[axis]
    return slice(start, start + (spec.out_size[axis] - 1) * spec.strides[axis] + 1, spec.strides[axis])
