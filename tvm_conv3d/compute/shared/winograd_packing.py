"""Packing of Winograd's weights in TE: taps of the phases, transformed in float64 one axis after the other."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import Matrix
from tvm_conv3d.compute.shared.packing import Weights
from tvm_conv3d.compute.shared.winograd_axes import Axes
from tvm_conv3d.compute.shared.winograd_stages import index_names
from tvm_conv3d.spec import Triple

Expr = Any  # a TVM expression; its classes are not public names

#: Type that weights are transformed in; they are rounded once, when they are stored.
DTYPE = "float64"

#: Name of the stage of weights as they are.
TAPS = "taps"

#: Names of the stages, by axis.
STAGES = ("kernel_d", "kernel_h", "kernel_w")

#: Names of the axes of a packed kernel in vectors of filters, by which schedules know them.
AXES = ["d", "h", "w", "block", "channel", "vector", "lane"]

#: Names of the stages that hold their matrices.
TABLES = ("table_d", "table_h", "table_w")


def taps_of_phases(spec: CanonicalSpec, axes: Axes, weights: Weights) -> Callable[..., Expr]:
    """How the taps of phases are read: (taps, gathered channel of a group, filter, conditions) -> weight in float64.

    Args:
        spec: the problem.
        axes: its modes.
        weights: the user's.
    """
    _, ph, pw = axes.phases

    def read(taps: Sequence[Expr], gathered: Expr, filter_: Expr, inside: Sequence[Expr] = ()) -> Expr:
        phase, channel = 0, gathered
        if math.prod(axes.phases) > 1:
            phase, channel = gathered // spec.group_channels, gathered % spec.group_channels
        of_axes = (phase // (ph * pw), phase // pw % ph, phase % pw)
        places = [t * count + p if count > 1 else t for t, count, p in zip(taps, axes.phases, of_axes, strict=True)]
        sides = zip(places, axes.taps, axes.phases, spec.kernel, strict=True)
        valid = [place < kernel for place, count, phases, kernel in sides if count * phases > kernel]
        return weights.kernel(places, channel, filter_, [*valid, *inside]).astype(DTYPE)

    return read


def transformed_taps(
    read: Callable[..., Expr], taps: Triple, matrices: Sequence[Matrix], inner: Sequence[int], tables: bool = True
) -> tuple[te.Tensor, te.Tensor]:
    """The taps as they are, and transformed along width, height and depth: (taps or frequencies, `inner`) in float64.

    Args:
        read: (taps along depth, height, width, index in `inner`) -> weight.
        taps: per axis.
        matrices: of the kernel's transform along each axis; an axis with a single factor of 1 needs none.
        inner: extents of the further axes.
        tables: the matrices lie in memory, so that rows need not be unrolled, which takes LLVM too long; else they are
            constants once rows are.
    """
    shape = (*taps, *inner)
    plain = te.compute(shape, lambda *i: read(i[:3], *i[3:]), name=TAPS, varargs_names=index_names(shape))
    current = plain
    for axis in (2, 1, 0):
        if len(matrices[axis]) * len(matrices[axis][0]) > 1:
            current = _along(current, axis, matrices[axis], tables)
    return plain, current


def _along(before: te.Tensor, axis: int, matrix: Matrix, tables: bool) -> te.Tensor:
    """sum_i matrix[row, i] * before[i], where the row is the index along `axis`."""
    shape = [int(extent) for extent in before.shape]
    taps, shape[axis] = shape[axis], len(matrix)
    entry = _table(matrix, TABLES[axis]) if tables else functools.partial(_constant, matrix)

    def at(*index: Expr) -> Expr:
        terms = [before[(*index[:axis], i, *index[axis + 1 :])] * entry(index[axis], i) for i in range(taps)]
        return functools.reduce(operator.add, terms)

    return te.compute(tuple(shape), at, name=STAGES[axis], varargs_names=index_names(shape))


def _table(matrix: Matrix, name: str) -> Callable[[Expr, int], Expr]:
    def fill(table: Any) -> Any:
        stores = [
            tirx.BufferStore(table, tirx.const(float(entry), DTYPE), [row, column])
            for row, entries in enumerate(matrix)
            for column, entry in enumerate(entries)
        ]
        return tirx.SeqStmt(stores)

    shape = (len(matrix), len(matrix[0]))
    table = te.extern([shape], [], lambda _, out: fill(out[0]), name=name, dtype=DTYPE)
    return lambda row, column: table[row, column]


def _constant(matrix: Matrix, row: Expr, column: int) -> Expr:
    value = tirx.const(0, DTYPE)
    for number, entries in enumerate(matrix):
        value = tirx.Select(row == number, tirx.const(float(entries[column]), DTYPE), value)
    return value
