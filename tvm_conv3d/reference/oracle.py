"""An independent oracle: convolution in float64 NumPy, from the definition alone.

It shares no code with the compiled kernels and is what their numbers are judged by: in the tests, before a benchmark
is timed, and before a tuning record is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, WEIGHT_GRADIENT, Conv3DSpec
from tvm_conv3d.spec.post_ops import ADD, PostOp

#: Input cells that :func:`convolve_at` gathers at a time, to bound its memory.
_PATCH_CELLS = 1 << 22

_erf = np.vectorize(math.erf, otypes=[np.float64])


def convolve(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The convolution of `spec` without its post-ops, as a sum over taps; or the gradient of its input.

    Args:
        spec: the problem; its post-ops and dtypes are ignored.
        x: input of `spec.input_shape`, any real dtype.
        kernel: weights of `spec.kernel_shape`.
        bias: a value for each channel of the output, or None.

    Returns:
        float64 array of `spec.output_shape`.

    Raises:
        ValueError: the gradient of the weights is asked for.
    """
    if spec.direction == WEIGHT_GRADIENT:
        raise ValueError(f"Gradients of weights are computed by `weight_gradient`. Received: {spec.key()}")
    x = np.asarray(x).astype(np.float64)
    kernel = np.asarray(kernel).astype(np.float64)
    if spec.data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    out = _scattered(spec, x, kernel) if spec.direction == DATA_GRADIENT else _gathered(spec, x, kernel)
    if bias is not None:
        out += np.asarray(bias).astype(np.float64)
    return np.moveaxis(out, -1, 1) if spec.data_format == CHANNELS_FIRST else out


def weight_gradient(spec: Conv3DSpec, x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of weights and bias, as sums over samples and positions, tap by tap.

    Args:
        spec: the problem, whatever its direction; its post-ops and dtypes are ignored.
        x: the forward input, any real dtype.
        gradient: that of the forward output.

    Returns:
        float64 arrays of `spec.kernel_shape` and (filters,).
    """
    taps = np.array(list(np.ndindex(*spec.kernel)))
    out = weight_gradient_at(spec, x, gradient, taps).reshape(spec.kernel_shape)
    return out, bias_gradient(spec, gradient)


def weight_gradient_at(spec: Conv3DSpec, x: np.ndarray, gradient: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """The gradient of the weights of some taps.

    Args:
        spec, x, gradient: as of :func:`weight_gradient`.
        taps: (count, 3), the depth, height and width of each.

    Returns:
        float64 array (count, channels / groups, filters).
    """
    x, gradient = (np.asarray(array).astype(np.float64) for array in (x, gradient))
    if spec.data_format == CHANNELS_FIRST:
        x, gradient = (np.moveaxis(array, 1, -1) for array in (x, gradient))
    channels, filters = spec.group_channels, spec.group_filters
    out = np.zeros((len(taps), channels, spec.filters))
    if 0 in gradient.shape:
        return out
    x = _padded(spec, x)
    for number, tap in enumerate(taps):
        window = x[(slice(None), *(_taps(spec, axis, int(tap[axis])) for axis in range(3)))]
        for group in range(spec.groups):
            of, into = (slice(group * count, (group + 1) * count) for count in (channels, filters))
            out[number, :, into] = np.tensordot(window[..., of], gradient[..., into], (range(4), range(4)))
    return out


def bias_gradient(spec: Conv3DSpec, gradient: np.ndarray) -> np.ndarray:
    """The gradient of the bias, (filters,) in float64, from that of the forward output."""
    axis = 1 if spec.data_format == CHANNELS_FIRST else -1
    return np.moveaxis(np.asarray(gradient).astype(np.float64), axis, -1).sum((0, 1, 2, 3))


def finish(spec: Conv3DSpec, sums: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """The post-ops of `spec` applied to `sums`, bias included, one after the other.

    Args:
        spec: the problem; its post-ops count.
        sums: of any shape.
        residual: of the same shape, where there is one.

    Returns:
        float64 array of that shape.
    """
    values = np.asarray(sums).astype(np.float64)
    for name, parameters in map(PostOp.parse, spec.post_ops):
        if name == ADD:
            values = values + np.asarray(residual).astype(np.float64)
        else:
            values = _ACTIVATIONS[name](values, *parameters)
    return values


def _gathered(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The sums of the convolution, channels last."""
    out = np.zeros((spec.batch, *spec.out_size, spec.filters))
    if spec.empty:
        return out
    x = _padded(spec, x)
    channels, filters = spec.group_channels, spec.group_filters
    for tap in np.ndindex(*spec.kernel):
        window = x[(slice(None), *(_taps(spec, axis, tap[axis]) for axis in range(3)))]
        for group in range(spec.groups):
            into = slice(group * filters, (group + 1) * filters)
            out[..., into] += window[..., group * channels : (group + 1) * channels] @ kernel[(*tap, slice(None), into)]
    return out


def _scattered(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The sums of the gradient of the input, channels last: each cell adds its products where its window lies."""
    out = np.zeros((spec.batch, *spec.size, spec.channels))
    if 0 in x.shape or spec.empty:
        return out
    # where each cell of the padded input lies in the result; -1 is none
    places = _padded(spec, np.arange(1, 1 + math.prod(spec.size)).reshape(1, *spec.size, 1))[0, ..., 0].astype(int) - 1
    channels, filters = spec.group_channels, spec.group_filters
    flat = out.reshape(spec.batch, -1, spec.channels)
    for tap in np.ndindex(*spec.kernel):
        place = places[tuple(_taps(spec, axis, tap[axis]) for axis in range(3))]
        for group in range(spec.groups):
            into, of = slice(group * channels, (group + 1) * channels), slice(group * filters, (group + 1) * filters)
            # a tap adds to each place once
            flat[:, place[place >= 0], into] += x[:, place >= 0, of] @ kernel[(*tap, slice(None), of)].T
    return out


def _padded(spec: Conv3DSpec, x: np.ndarray) -> np.ndarray:
    """The input, channels last, with zeros between its cells and around it; negative pads crop it."""
    for axis, (pads, apart) in enumerate(zip(spec.pads, spec.input_dilation, strict=True), 1):
        dilated = np.zeros((*x.shape[:axis], max(0, (x.shape[axis] - 1) * apart + 1), *x.shape[axis + 1 :]), x.dtype)
        dilated[(slice(None),) * axis + (slice(None, None, apart),)] = x
        around = [(0, 0)] * x.ndim
        around[axis] = (max(0, pads[0]), max(0, pads[1]))
        x = np.pad(dilated, around)
        kept = slice(max(0, -pads[0]), x.shape[axis] - max(0, -pads[1]))
        x = x[(slice(None),) * axis + (kept,)]
    return x


def convolve_at(
    spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, positions: np.ndarray
) -> np.ndarray:
    """The convolution of `spec` without its post-ops, at some output positions: for layers too large to do whole.

    Args:
        spec, x, kernel, bias: as in :func:`convolve`, of the forward convolution.
        positions: integers (count, 4): sample, depth, height and width of each wanted output cell.

    Returns:
        float64 array (count, filters).
    """
    x = np.asarray(x)
    if spec.data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    x = _padded(spec, x)
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


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _shrunk(x: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def _celu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _squareplus(x: np.ndarray, b: float) -> np.ndarray:
    root = np.sqrt(x * x + b)
    return np.where(x < 0, b / 2 / (root - x), (x + root) / 2)


_ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x, negative_slope: np.where(x < 0, negative_slope * x, x),
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "celu": _celu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "gelu": _gelu,
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "sigmoid": _sigmoid,
    "log_sigmoid": lambda x: -np.logaddexp(0, -x),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": np.clip,
    "hard_shrink": lambda x, threshold: np.where(np.abs(x) <= threshold, 0, x),
    "soft_shrink": _shrunk,
    "tanh": np.tanh,
    "tanh_shrink": lambda x: x - np.tanh(x),
    "softplus": lambda x, beta: np.logaddexp(beta * x, 0) / beta,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "exponential": np.exp,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x < 1, 0.25 * (x + 1) ** 2, x)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "squareplus": _squareplus,
}
