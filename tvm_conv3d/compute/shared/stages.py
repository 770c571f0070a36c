"""Expressions that the declarations share: windows, zero padding, and the finished value of an output element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import narrow
from tvm_conv3d.compute.shared.epilogue import apply_post_ops

Expr = Any  # a TVM expression; its classes are not public names


def reduction(spec: CanonicalSpec) -> tuple[list[te.IterVar], te.IterVar]:
    """Fresh reduction axes: the taps along depth, height and width, and the channel of a group."""
    taps = [te.reduce_axis((0, k), name=f"tap_{axis}") for k, axis in zip(spec.kernel, "dhw", strict=True)]
    return taps, te.reduce_axis((0, spec.group_channels), name="channel")


def under_tap(spec: CanonicalSpec, position: Sequence[Expr], taps: Sequence[te.IterVar]) -> list[Expr]:
    """Where in the padded input the taps of the window of an output position lie."""
    return [o * s + t * d for o, s, t, d in zip(position, spec.strides, taps, spec.dilation, strict=True)]


def window_extents(spec: CanonicalSpec, positions: Sequence[int]) -> list[int]:
    """Extents of the padded input that the windows of so many output positions cover."""
    return [(o - 1) * s + window for o, s, window in zip(positions, spec.strides, spec.window, strict=True)]


def unravel(number: Expr, shape: Sequence[int]) -> list[Expr]:
    """Depth, height and width of element `number` of a C-ordered array of `shape`."""
    _, height, width = shape
    return [number // (height * width), number // width % height, number % width]


def in_lanes(name: str, tiles: te.Tensor, store: int) -> te.Tensor:
    """A copy of `tiles` whose last axis are the `store` neighbours along its last one that are stored at once."""
    *outer, columns = (int(extent) for extent in tiles.shape)
    shape = (*outer, columns // store, store)
    return te.compute(shape, lambda *at: tiles[(*at[:-2], at[-2] * store + at[-1])], name=name)


def zero_padded(
    spec: CanonicalSpec,
    extents: Sequence[int],
    index: Sequence[Expr],
    read: Callable[[list[Expr]], Expr],
    inside: Sequence[Expr] = (),
    dtype: str | None = None,
) -> Expr:
    """`read` at `index` of the padded input, or zero outside of the input.

    Args:
        spec: the problem; its pads shift the index.
        extents: of the padded input; conditions that can't fail are left out.
        index: depth, height, width in the padded input.
        read: takes depth, height, width in the input.
        inside: further conditions of a read.
        dtype: of what `read` gives; None is the accumulator's.
    """
    befores = [before for before, _ in spec.pads]
    return zero_outside(dtype or spec.accumulator, befores, spec.size, extents, index, read, inside)


def zero_outside(
    dtype: str,
    befores: Sequence[int],
    size: Sequence[int],
    extents: Sequence[int],
    index: Sequence[Expr],
    read: Callable[[list[Expr]], Expr],
    inside: Sequence[Expr] = (),
) -> Expr:
    """:func:`zero_padded` for any box of `size` that begins at `befores` in one of `extents`."""
    conditions = list(inside)
    shifted = []
    for i, extent, before, length in zip(index, extents, befores, size, strict=True):
        shifted.append(i - before)
        if before:
            conditions.append(i >= before)
        if extent > before + length:
            conditions.append(i < before + length)
    return zero_unless(conditions, read(shifted), dtype)


def zero_unless(conditions: Iterable[Expr], value: Expr, dtype: str) -> Expr:
    """`value`, of type `dtype`, where all conditions hold; it is not read where one does not."""
    together = list(conditions)
    return tirx.if_then_else(tirx.all(*together), value, tirx.const(0, dtype)) if together else value


def finish(spec: CanonicalSpec, total: Expr, bias: Expr, residual: Expr = None) -> Expr:
    """Bias, post-ops, of which one may add the residual operand, and rounding to the output's type."""
    # an element of a tensor is no expression as yet
    total = total.asobject() if isinstance(total, te.TensorSlice) else total
    return _rounded(spec, total + bias if spec.bias else total, residual)


def in_tile(spec: CanonicalSpec, total: Expr, bias: Expr) -> Expr:
    """What a tile holds that is stored later: the finished value, or the sum where a residual operand is read then."""
    if not spec.residual:
        return finish(spec, total, bias)
    return total + bias if spec.bias else total.asobject() if isinstance(total, te.TensorSlice) else total


def from_tile(spec: CanonicalSpec, value: Expr, residual: Expr) -> Expr:
    """What is stored of the value of :func:`in_tile`."""
    value = value.asobject() if isinstance(value, te.TensorSlice) else value
    return _rounded(spec, value, residual) if spec.residual else value


def _rounded(spec: CanonicalSpec, value: Expr, residual: Expr) -> Expr:
    return narrow(apply_post_ops(spec.post_ops, value, residual), spec.dtypes.output, spec.accumulator)


#: Terms of a sum that are added one after the other, at most. Measured in float32: so many positive random terms
#: are 4e-7 off, equal ones, whose roundings all have one sign, 8e-6; 4096 are 1e-6 and 3e-5 off.
PART = 1024

#: The same on GPUs, where the totals of parts take registers.
PART_ON_GPU = 4096

#: Unit roundoff of each type of output, next to which the accumulator's rounding is counted.
_ROUNDOFF = {"float64": 0.0, "float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}

#: Rounding of a sum of n products, relative to it, is this times sqrt(n). Fitted to float32, with a third to spare.
_SUM_ROUNDING = {"float32": 2.3e-8, "float64": 2.3e-8 * 2.0**-29}


def terms_of_part(terms: int, on_gpu: bool = False) -> int:
    """Terms of a part of a sum of so many, at most: all where they are few, never fewer than there are parts."""
    return max(PART_ON_GPU if on_gpu else PART, math.isqrt(terms))


def error_of_sums(spec: CanonicalSpec, products: int, amplification: float = 1.0, on_gpu: bool = False) -> float:
    """The relative error (2-norm) to expect of sums of `products` terms, for data and weights without structure.

    Args:
        spec: its types count.
        products: terms of a sum.
        amplification: how much more an algorithm shows its rounding than the plain sum.
        on_gpu: where they are summed, which decides on the size of parts.
    """
    part = min(products, terms_of_part(products, on_gpu))
    roundings = max(16, part) + math.ceil(products / max(1, part)) - 1
    sums = amplification * _SUM_ROUNDING[spec.accumulator] * math.sqrt(roundings)
    return math.hypot(sums, _ROUNDOFF[spec.dtype])
