"""A batch norm of fixed statistics as part of the convolution before it: other weights, another bias."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tvm_conv3d.runtime import exit_guard
from tvm_conv3d.support.dtypes import numpy_dtype

#: The smallest normal number of float16, the one type with so few exponents that folded weights may lose bits.
_MIN_NORMAL = 2.0**-14


class BatchNorm(NamedTuple):
    """What becomes of a convolution's result y, filter by filter: (y - mean) / sqrt(variance + epsilon) weight + bias.

    Attributes:
        values: mean and variance of all filters, then weights and biases where there are some, in one row.
        weight, bias: whether there are some.
        epsilon: what is added to the variance.
        transposed: whether the convolution is; then its kernel has the filters of a group beside all input channels.
        groups: of the convolution.
    """

    values: np.ndarray
    weight: bool
    bias: bool
    epsilon: float
    transposed: bool
    groups: int


def fold(kernel: np.ndarray, bias: np.ndarray | None, norm: BatchNorm, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the convolution that computes both, in float64 and rounded once.

    Args:
        kernel: (depth, height, width, channels / groups, filters), of a transposed convolution (depth, height, width,
            filters / groups, channels); of a floating type.
        bias: (filters,), or None.
        norm: what follows the convolution.
        dtype: of the result.

    Returns:
        The kernel, C-contiguous, and the bias.

    Raises:
        ValueError: a variance is negative, or something is not finite, or too small for float16.
    """
    # NumPy's loops are compiled code, too
    with exit_guard.in_flight(), np.errstate(all="ignore"):
        return _fold(kernel, bias, norm, numpy_dtype(dtype))


def _fold(
    kernel: np.ndarray, bias: np.ndarray | None, norm: BatchNorm, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    mean, variance, *affine = norm.values.astype(np.float64).reshape(2 + norm.weight + norm.bias, -1)
    scale = (affine[0] if norm.weight else 1.0) / np.sqrt(variance + norm.epsilon)
    before = -mean if bias is None else bias.astype(np.float64) - mean
    moved = (before * scale + (affine[-1] if norm.bias else 0.0)).astype(dtype)
    values, factors = _by_filter(kernel, scale, norm)
    folded = np.empty(values.shape, dtype)
    np.multiply(values, factors, out=folded, dtype=np.float64, casting="unsafe")
    if not ((variance >= 0).all() and all(np.isfinite(each).all() for each in (scale, moved, folded))):
        raise ValueError(
            f"a batch norm that can't be folded into weights of {dtype}: a variance is negative, or a value of it, of "
            "the weights or of both together is not finite"
        )
    if dtype == np.float16:
        others = tuple(axis for axis, size in enumerate(factors.shape) if size == 1)
        largest = np.abs(values).max(axis=others, keepdims=True) * np.abs(factors)
        if ((largest > 0) & (largest < _MIN_NORMAL)).any():
            raise ValueError("a batch norm that can't be folded into weights of float16, as they would lose bits")
    return folded.reshape(kernel.shape), moved


def _by_filter(kernel: np.ndarray, scale: np.ndarray, norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """A view of a kernel, and each filter's factor with as many axes, of one element where filters do not lie."""
    if not norm.transposed:
        return kernel, scale.reshape(1, 1, 1, 1, -1)
    *window, filters, channels = kernel.shape
    values = kernel.reshape(*window, filters, norm.groups, channels // norm.groups)
    return values, scale.reshape(1, 1, 1, norm.groups, filters, 1).swapaxes(3, 4)
