"""What training needs beside convolutions, of arrays with the channels last: maxima and gradients passed back."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads
from tvm_conv3d.spec import Triple

if TYPE_CHECKING:
    from tvm import IRModule

#: Types of data that there are functions for; others are computed by frameworks.
DTYPES = ("float32", "float64")

#: Cells of a window whose numbers a byte holds.
MOST_CELLS = 256

#: Elements of a task.
_CHUNK = 1 << 16


def pooled(shape: Sequence[Any], window: Triple) -> tuple[Any, ...]:
    """The shape of the maxima of windows side by side, as far as (batch, depth, height, width, channels) is known.

    Args:
        shape: extents, or what is computed with as such; None for a depth, height or width that is not known.
        window: depth, height and width in cells.
    """
    batch, *size, channels = shape
    counts = (None if cells is None else cells // taps for cells, taps in zip(size, window, strict=True))
    return (batch, *counts, channels)


def max_pool(
    x: np.ndarray, window: Triple, out: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of each window, windows side by side, and its cell.

    Args:
        x: (batch, depth, height, width, channels) of one of :data:`DTYPES`, C-contiguous, without an empty axis.
        window: depth, height and width in cells, at most :data:`MOST_CELLS` of them; a rest of `x` is left out.
        out: C-contiguous memory of both results; None for some of this package's.

    Returns:
        The maxima, and as uint8 of their shape the number of each one's cell in its window: the first of equal ones,
        the first NaN.

    Raises:
        MemoryError: there is none for the results.
    """
    batch, *size, channels = x.shape
    shape = pooled(x.shape, window)
    if out is None:
        out = output_pool.empty(shape, x.dtype), output_pool.empty(shape, np.dtype(np.uint8))
    with exit_guard.in_flight():
        threads.run(
            _code(x.dtype, "maxima"), *helper_code.pointers(x, *out), batch, *size, *shape[1:4], channels, *window
        )
    return out


def max_pool_gradient(
    gradient: np.ndarray, taps: np.ndarray, size: Triple, window: Triple, out: np.ndarray | None = None
) -> np.ndarray:
    """The gradient of the input of :func:`max_pool`.

    Args:
        gradient: that of the maxima, C-contiguous.
        taps: the maxima's cells.
        size: depth, height and width of the input.
        window: of the maxima.
        out: C-contiguous memory of the result; None for some of this package's.

    Returns:
        (batch, depth, height, width, channels); the gradient of each window in its maximum's cell, else 0.

    Raises:
        MemoryError: there is none for the result.
    """
    batch, *windows, channels = gradient.shape
    if out is None:
        out = output_pool.empty((batch, *size, channels), gradient.dtype)
    for axis, (count, taps_along) in enumerate(zip(windows, window, strict=True), 1):
        # what no window reads
        out[(slice(None),) * axis + (slice(count * taps_along, None),)] = 0
    with exit_guard.in_flight():
        threads.run(
            _code(gradient.dtype, "spread"),
            *helper_code.pointers(gradient, taps, out),
            *(batch, *size, *windows, channels, *window),
        )
    return out


def relu_gradient(y: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The gradient of what a ReLU has made `y` of, from that of `y`: 0 where `y` is not positive.

    Args:
        y, gradient: of one shape and one of :data:`DTYPES`, C-contiguous.

    Raises:
        MemoryError: there is none for the result.
    """
    out = output_pool.empty(y.shape, y.dtype)
    if y.size:
        with exit_guard.in_flight():
            threads.run(_code(y.dtype, "passed"), *helper_code.pointers(y, gradient, out), y.size, _CHUNK)
    return out


def takes(dtype: str, window: Triple) -> bool:
    """Whether :func:`max_pool` takes such data and windows."""
    return dtype in DTYPES and math.prod(window) <= MOST_CELLS


@functools.cache
def _code(dtype: np.dtype, function: str) -> Any:
    identity = {"name": "maxima and gradients passed back", "of": dtype.name}
    return helper_code.get(identity, functools.partial(_module, dtype.name)).get_function(function)


def _module(dtype: str) -> IRModule:
    from tvm_conv3d.compute.llvm import training

    return training.module(dtype)
