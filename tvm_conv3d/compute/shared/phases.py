"""Phases of a transposed convolution (:mod:`tvm_conv3d.compute.shared.transposed`), for algorithms that serve them.

Sets of filters, of one group and one phase each, take the place of groups: they are numbered group by group, then by
phase along depth, height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.layout import grouped_shape
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names


def group(spec: CanonicalSpec, number: Expr) -> Expr:
    """The group of a set."""
    return number // spec.phases_of_group if spec.phased else number


def present(spec: CanonicalSpec, axis: int) -> tuple[tuple[bool, ...], ...]:
    """Which taps along an axis each of its phases has."""
    return tuple(tuple(theirs is not None for theirs in of_phase) for of_phase in spec.taps[axis])


def inner(spec: CanonicalSpec, axis: int) -> int:
    """By how much the number of a set grows from one phase of an axis to the next."""
    return math.prod(spec.phases[axis + 1 :])


def is_present(present: Sequence[Sequence[bool]], inner: int, number: Expr, tap: Expr) -> Expr:
    """Whether a set has a tap along an axis.

    Args:
        present, inner: of the axis, by the functions of these names.
        number: of the set.
        tap: of the canonical problem.
    """
    phase = number // inner % len(present)
    return tirx.any(*(tirx.all(phase == one, _among(taps, tap)) for one, taps in enumerate(present)))


def has_tap(spec: CanonicalSpec, axis: int, number: Expr, tap: Expr) -> Expr | None:
    """The same of an axis of `spec`; None where every set has every tap."""
    found = present(spec, axis)
    return None if all(map(all, found)) else is_present(found, inner(spec, axis), number, tap)


def tap_of_origin(spec: CanonicalSpec, axis: int, number: Expr, tap: Expr) -> Expr:
    """Which of the origin's taps along an axis stands at a tap of a set that has it."""
    phase, found = number // inner(spec, axis) % spec.phases[axis], None
    for one, of_phase in enumerate(spec.taps[axis]):
        pairs = [(ours, theirs) for ours, theirs in enumerate(of_phase) if theirs is not None]
        if pairs:
            value = _evenly(pairs, tap)
            found = value if found is None else tirx.Select(phase == one, value, found)
    return tirx.const(0, "int32") if found is None else found


def place(spec: CanonicalSpec, windows: Sequence[Term], sets: int) -> tuple[tuple[Term, ...], ...]:
    """How depth, height and width of the result come of a declared output's axes.

    Args:
        spec: the problem.
        windows: windows along depth, height and width.
        sets: the axis of sets.
    """
    return tuple(
        ((axis, factor * count, divisor, modulus), term(sets, 1, inner(spec, number), count))
        for number, ((axis, factor, divisor, modulus), count) in enumerate(zip(windows, spec.phases, strict=True))
    )


def group_of(spec: CanonicalSpec, sets: int) -> tuple[Term]:
    """How the group comes of the axis of sets."""
    return (term(sets, 1, spec.phases_of_group),)


def tiling(spec: CanonicalSpec) -> Tiling:
    """Of :func:`tvm_conv3d.compute.shared.layout.grouped_output`, with windows for positions and sets for groups."""
    if spec.data_format == CHANNELS_LAST:
        positions, sets, filters = (term(1), term(2), term(3)), 4, term(5)
    else:
        positions, sets, filters = (term(3), term(4), term(5)), 1, term(2)
    where, group_ = place(spec, positions, sets), group_of(spec, sets)
    axes = ((term(0),), *where, group_, (filters,))
    if spec.data_format != CHANNELS_LAST:
        axes = ((term(0),), group_, (filters,), *where)
    return Tiling(grouped_shape(spec, spec.result_size, spec.groups, spec.set_filters), axes)


def tiling_of_product(spec: CanonicalSpec, tile: tuple[int, int], store: int, count: int) -> Tiling:
    """Of the output of :mod:`tvm_conv3d.compute.cuda.implicit_gemm`, its tiles declared as (positions, filters, lanes).

    Args:
        spec: the problem.
        tile: windows and filters of a tile.
        store: filters that are stored at once, of channels_last.
        count: windows of a plane.
    """
    positions, filters = tile
    # number of a window in its plane, after the declared axes
    window = 7
    depth, height, width = spec.out_size
    windows = (term(window, 1, height * width, depth), term(window, 1, width, height), term(window, 1, 1, width))
    where, group_, of_plane = place(spec, windows, 1), group_of(spec, 1), ((2, positions), (4, 1))
    if spec.data_format == CHANNELS_LAST:
        sample, filter_ = (term(window, 1, math.prod(spec.out_size)),), (term(3, filters // store), term(5))
        shape = (spec.batch, *spec.result_size, spec.groups, spec.set_filters // store, store)
        return Tiling(shape, (sample, *where, group_, filter_, (term(6),)), of_plane, count)
    axes = ((term(0),), group_, (term(3, filters), term(5)), *where)
    return Tiling((spec.batch, spec.groups, spec.set_filters, *spec.result_size), axes, of_plane, count)


def _among(present: Sequence[bool], tap: Expr) -> Expr:
    """Whether `tap` is one that a phase has."""
    known = [number for number, there in enumerate(present) if there]
    if not known:
        return tirx.const(False, "bool")
    if len(known) == known[-1] - known[0] + 1:
        return tirx.all(tap >= known[0], tap <= known[-1])
    return tirx.any(*(tap == one for one in known))


def _evenly(pairs: Sequence[tuple[int, int]], tap: Expr) -> Expr:
    """The origin's tap, which grows or falls evenly with ours."""
    (ours, theirs), *others = pairs
    if not others:
        return tirx.const(theirs, "int32")
    apart, by = others[0][0] - ours, others[0][1] - theirs
    return (tap - ours) // apart * by + theirs
