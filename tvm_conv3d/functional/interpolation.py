"""Nearest and trilinear resampling of arrays whose channels lie innermost."""

from __future__ import annotations

import functools

import numpy as np

from tvm_conv3d.compute.shared.gathered import COPY, SUM, Cells, Tables, form_of, tables
from tvm_conv3d.runtime import gathered
from tvm_conv3d.spec.interpolation import NEAREST, Interpolation


def interpolate(x: np.ndarray, spec: Interpolation) -> np.ndarray:
    """`x`, resampled; trilinear in float32 where its elements are of a half type, rounded once.

    Coordinates are PyTorch's (ATen/native/UpSample.h): in float32 where they choose a cell, in float64 where they are
    factors, as there for float64. As there, a neighbour counts whose factor is 0: beside an infinity results are NaN.

    Args:
        x: (batch, depth, height, width, channels), C-contiguous, without an empty axis.
        spec: of its size.

    Returns:
        A new array of `spec.out_size` cells.

    Raises:
        ValueError: the cells of a result have more elements along the width than a row in cache.
        MemoryError: there is none for the result.
    """
    # cells are copied as bits, of whatever type
    dtype = f"uint{8 * x.itemsize}" if spec.mode == NEAREST else x.dtype.name
    return gathered.gather(x, _tables(spec, dtype, x.shape[0], x.shape[-1]))


@functools.lru_cache(256)
def _tables(spec: Interpolation, dtype: str, batch: int, channels: int) -> Tables:
    kind = COPY if spec.mode == NEAREST else SUM
    axes = [(_nearest if kind == COPY else _linear)(spec, axis) for axis in range(3)]
    return tables(form_of(kind, dtype, channels, axes), batch, spec.size, channels, axes)


def _nearest(spec: Interpolation, axis: int) -> Cells:
    results = np.arange(spec.out_size[axis])
    places = results.astype(np.float32) * np.float32(_step(spec, axis))
    index = np.minimum(np.floor(places).astype(np.int64), spec.size[axis] - 1)
    return Cells(np.ones_like(results), index[:, None], np.ones((len(results), 1)))


def _linear(spec: Interpolation, axis: int) -> Cells:
    """Two neighbours of each result, which are one and the same at the end."""
    size, out_size = spec.size[axis], spec.out_size[axis]
    places = np.arange(out_size, dtype=np.float64)
    if out_size != size:
        ends = (size - 1) / max(1, out_size - 1)
        places = places * ends if spec.align_corners else np.maximum(_step(spec, axis) * (places + 0.5) - 0.5, 0)
    first = np.minimum(np.floor(places.astype(np.float32)).astype(np.int64), size - 1)
    second = first if out_size == size else np.minimum(first + 1, size - 1)
    factors = np.clip(places - first, 0, 1)
    return Cells(np.full(out_size, 2), np.column_stack([first, second]), np.column_stack([1 - factors, factors]))


def _step(spec: Interpolation, axis: int) -> float:
    """Cells of the input from one result to the next."""
    if spec.scales and spec.scales[axis] > 0:
        return 1 / spec.scales[axis]
    return spec.size[axis] / spec.out_size[axis]
