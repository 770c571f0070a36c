"""What Winograd's declarations share: the cells that tiles are made of, their weights, and the transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from tvm_conv3d.compute.cook_toom import Matrix, transforms
from tvm_conv3d.compute.elements import widen
from tvm_conv3d.compute.stages import zero_padded
from tvm_conv3d.compute.winograd_axes import Axes
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec

#: Measured errors of random layers exceed the estimate from the matrices by up to this (kernels of 5 to 7).
MARGIN = 1.25

Expr = Any  # a TVM expression; its classes are not public names


def gathered(
    spec: Conv3DSpec, axes: Axes, extents: Sequence[int], channels: int, x: te.Tensor
) -> Callable[[Expr, Sequence[Expr], Sequence[Expr], Expr], Expr]:
    """How a gathered cell is read: (sample, part, cell of that part, channel) -> input, or zero outside of it.

    Args:
        spec: the problem, axes collapsed.
        axes: its modes.
        extents: cells of a part, per axis, from which on none is asked for.
        channels: the same of channels.
        x: the input.
    """
    # as if the input were padded so that every gathered cell and phase exists
    reach = [
        (e - 1) * step + (p - 1) * spread + parts
        for e, step, p, spread, parts in zip(extents, axes.step, axes.phases, axes.spread, axes.parts, strict=True)
    ]
    _, ph, pw = axes.phases

    def at(n: Expr, part: Sequence[Expr], cell: Sequence[Expr], c: Expr) -> Expr:
        several = math.prod(axes.phases) > 1
        phase = (c // (spec.channels * pw * ph), c // (spec.channels * pw) % ph, c // spec.channels % pw)
        where = [
            p + i * step + (q * spread if several else 0)
            for p, i, step, q, spread in zip(part, cell, axes.step, phase, axes.spread, strict=True)
        ]
        channel = c % spec.channels if several else c

        def read(index: list[Expr]) -> Expr:
            position = (n, *index, channel) if spec.data_format == CHANNELS_LAST else (n, channel, *index)
            return widen(x[position], spec.dtype, spec.accumulator)

        inside = [c < axes.channels] if channels > axes.channels else []
        return zero_padded(spec, reach, where, read, inside)

    return at


def split_taps(spec: Conv3DSpec, axes: Axes, kernel: np.ndarray) -> np.ndarray:
    """Weights (kd, kh, kw, channels, filters) as (taps along depth, height, width, gathered channels, filters)."""
    sizes = tuple(t * p for t, p in zip(axes.taps, axes.phases, strict=True))
    padded = np.zeros((*sizes, spec.channels, spec.filters))
    kd, kh, kw = kernel.shape[:3]
    padded[:kd, :kh, :kw] = kernel
    split = padded.reshape(*(n for pair in zip(axes.taps, axes.phases, strict=True) for n in pair), *padded.shape[3:])
    return split.transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(*axes.taps, axes.channels, spec.filters)


def transformed(taps: np.ndarray, tile: Sequence[int]) -> np.ndarray:
    """:func:`split_taps` transformed in float64: (frequencies along depth, height, width, channels, filters)."""
    for axis, (m, r) in enumerate(zip(tile, taps.shape[:3], strict=True)):
        matrix = np.array(transforms(m, r).kernel, dtype=np.float64)
        # not by BLAS, whose locks a forked child inherits and waits for
        name = "dhwcf"[axis]
        taps = np.einsum(f"n{name},dhwcf->{'dhwcf'.replace(name, 'n')}", matrix, taps)
    return taps


def transform(
    dtype: str, shape: tuple[int, ...], name: str, matrix: Matrix, read: Callable[..., Expr], from_end: int
) -> te.Tensor:
    """sum_i matrix[row, i] * read(i, ...), where the row is the index that is `from_end` before the end."""
    step = te.reduce_axis((0, len(matrix[0])), name="step")

    def entry(row: Expr) -> Expr:
        value = tirx.const(0, dtype)
        for r, entries in enumerate(matrix):
            for i, number in enumerate(entries):
                if number:
                    here = tirx.all(row == r, step == i)
                    value = tirx.Select(here, tirx.const(float(number), dtype), value)
        return value

    def at(*index: Expr) -> Expr:
        return te.sum(read(step, *index) * entry(index[-from_end]), axis=[step])

    return te.compute(shape, at, name=name, varargs_names=index_names(shape))


def index_names(shape: Sequence[int]) -> list[str]:
    """A name for each axis."""
    return [f"i{number}" for number in range(len(shape))]
