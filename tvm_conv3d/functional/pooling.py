"""Max and average pooling of arrays whose channels lie innermost."""

from __future__ import annotations

import functools

import numpy as np

from tvm_conv3d.compute.shared.gathered import MAX, SUM, Cells, Tables, form_of, tables
from tvm_conv3d.runtime import gathered
from tvm_conv3d.spec import pooling
from tvm_conv3d.spec.pooling import Pooling


def pool(x: np.ndarray, spec: Pooling) -> np.ndarray:
    """The pooling of `x`, in float32 where its elements are of a half type, rounded once.

    A maximum is NaN where a cell is, and minus infinity where all cells are padding.

    Args:
        x: (batch, depth, height, width, channels), C-contiguous, without an empty axis.
        spec: of its size.

    Returns:
        A new array of `spec.out_size` cells.

    Raises:
        ValueError: a window has more elements along the width than a row in cache.
        MemoryError: there is none for the result.
    """
    return gathered.gather(x, _tables(spec, x.dtype.name, x.shape[0], x.shape[-1]))


@functools.lru_cache(256)
def _tables(spec: Pooling, dtype: str, batch: int, channels: int) -> Tables:
    axes = [_cells(spec, axis) for axis in range(3)]
    form = form_of(MAX if spec.kind == pooling.MAX else SUM, dtype, channels, axes)
    return tables(form, batch, spec.size, channels, axes)


def _cells(spec: Pooling, axis: int) -> Cells:
    """The cells of each window along an axis; their factors, multiplied over the axes, make an average of a sum."""
    size, taps, pad, apart = spec.size[axis], spec.kernel[axis], spec.pads[axis], spec.dilation[axis]
    begin = np.arange(spec.out_size[axis]) * spec.strides[axis] - pad
    # first tap on the input, and the one behind the last
    first = np.maximum(0, -(begin // apart))
    behind = np.minimum(taps, -((begin - size) // apart))
    counts = np.maximum(0, behind - first)
    index = begin[:, None] + (first[:, None] + np.arange(taps)) * apart
    if spec.divisor is not None:
        divisors = np.full(len(counts), spec.divisor if axis == 0 else 1)
    elif spec.count_include_pad:
        divisors = np.minimum(begin + taps, size + pad) - begin
    else:
        divisors = counts
    factors = np.ones(index.shape) if spec.kind == pooling.MAX else np.broadcast_to(1 / divisors[:, None], index.shape)
    return Cells(counts, index.clip(0, size - 1), factors)
