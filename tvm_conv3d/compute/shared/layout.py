"""Inputs and outputs in the user's layout, with the channel axis split into groups and channels of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.spec import CHANNELS_LAST, Triple

Expr = Any  # a TVM expression; its classes are not public names


def grouped_shape(spec: CanonicalSpec, size: Triple, groups: int, channels: int) -> tuple[int, ...]:
    """The shape of positions with `channels` of each of `groups`."""
    if spec.data_format == CHANNELS_LAST:
        return (spec.batch, *size, groups, channels)
    return (spec.batch, groups, channels, *size)


def grouped_input(spec: CanonicalSpec) -> te.Tensor:
    """The placeholder of the input."""
    shape = grouped_shape(spec, spec.size, spec.groups, spec.group_channels)
    return te.placeholder(shape, storage_dtype(spec.dtype), name="x")


def grouped_reader(spec: CanonicalSpec, x: te.Tensor) -> Callable[..., Expr]:
    """Reads the element of :func:`grouped_input` at (n, d, h, w, g, c), widened to the accumulator's type."""

    def at(n, d, h, w, g, c):  # type: ignore[no-untyped-def]
        value = x[n, d, h, w, g, c] if spec.data_format == CHANNELS_LAST else x[n, g, c, d, h, w]
        return widen(value, spec.dtype, spec.accumulator)

    return at


def in_layout(spec: CanonicalSpec, n: Expr, channel: Sequence[Expr], position: Sequence[Expr]) -> tuple[Expr, ...]:
    """The index of a channel, maybe as group and channel of the group, at a sample's position."""
    return (n, *position, *channel) if spec.data_format == CHANNELS_LAST else (n, *channel, *position)


def grouped_output(spec: CanonicalSpec, groups: int, filters: int, at: Callable[..., Expr]) -> te.Tensor:
    """The output, whose element of filter `f` of group `g` is at(n, g, f, d, h, w)."""
    shape = grouped_shape(spec, spec.out_size, groups, filters)
    if spec.data_format == CHANNELS_LAST:
        return te.compute(shape, lambda n, d, h, w, g, f: at(n, g, f, d, h, w), name="out")
    return te.compute(shape, at, name="out")
