"""Nearest and trilinear resampling of arrays whose channels lie innermost."""

from __future__ import annotations

import functools

import numpy as np

from tvm_conv3d.compute.shared.gathered import COPY, SUM, Cells, Tables, factors_of, form_of, tables
from tvm_conv3d.runtime import gathered
from tvm_conv3d.spec.interpolation import NEAREST, Interpolation


def interpolate(x: np.ndarray, spec: Interpolation) -> np.ndarray:
    """`x`, resampled; trilinear in float32 where its elements are of a half type, rounded once.

    Coordinates are PyTorch's (ATen/native/UpSample.h), in float32, those of trilinear float64 in float64. As there,
    a neighbour counts whose factor is 0: beside an infinity results are NaN.

    Args:
        x: (batch, depth, height, width, channels), C-contiguous, without an empty axis.
        spec: of its size.

    Returns:
        A new array of `spec.out_size` cells.

    Raises:
        ValueError: the cells of a result have more elements along the width than a row in cache.
        MemoryError: there is none for the result.
    """
    return gathered.gather(x, _tables(spec, x.dtype.name, x.shape[0], x.shape[-1]))


@functools.lru_cache(256)
def _tables(spec: Interpolation, dtype: str, batch: int, channels: int) -> Tables:
    kind = COPY if spec.mode == NEAREST else SUM
    cells = _nearest if kind == COPY else functools.partial(_linear, dtype=np.dtype(factors_of(dtype)))
    axes = [cells(spec, axis) for axis in range(3)]
    return tables(form_of(kind, dtype, channels, axes), batch, spec.size, channels, axes)


def _nearest(spec: Interpolation, axis: int) -> Cells:
    size, out_size = spec.size[axis], spec.out_size[axis]
    results = np.arange(out_size)
    if out_size == size:
        index = results
    elif out_size == 2 * size:
        index = results // 2
    else:
        step = _step(spec, axis, np.dtype(np.float32))
        index = np.minimum(np.floor(results.astype(np.float32) * step).astype(np.int64), size - 1)
    return Cells(np.ones(out_size, np.int64), index[:, None], np.ones((out_size, 1)))


def _linear(spec: Interpolation, axis: int, dtype: np.dtype) -> Cells:
    """Two neighbours of each result, which are one and the same at the end."""
    size, out_size = spec.size[axis], spec.out_size[axis]
    results = np.arange(out_size).astype(dtype)
    if out_size == size:
        place = results
    elif spec.align_corners:
        place = results * dtype.type((size - 1) / max(1, out_size - 1))
    else:
        half = dtype.type(0.5)
        place = np.maximum(_step(spec, axis, dtype) * (results + half) - half, 0)
    first = np.minimum(np.floor(place.astype(np.float32)).astype(np.int64), size - 1)
    second = first if out_size == size else np.minimum(first + 1, size - 1)
    factor = np.clip(place - first.astype(dtype), 0, 1)
    factors = np.column_stack([dtype.type(1) - factor, factor])
    return Cells(np.full(out_size, 2), np.column_stack([first, second]), factors)


def _step(spec: Interpolation, axis: int, dtype: np.dtype) -> np.floating:
    """Cells of the input from one result to the next."""
    if spec.scales and spec.scales[axis] > 0:
        return dtype.type(1 / spec.scales[axis])
    return dtype.type(spec.size[axis]) / dtype.type(spec.out_size[axis])
