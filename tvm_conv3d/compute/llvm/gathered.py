"""Results that gather cells along each axis, channels last: loops over memory, declared without a schedule.

A task makes a piece of a row of results. It combines the rows of the input, at the depths and heights that the results
take, into one row in cache; then cells of that row, channel by channel. The first step, which has the most to do, is
along whole rows, whose vectors are full however few the channels are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import IRModule, tirx
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import gathered, pointers
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen
from tvm_conv3d.compute.shared.gathered import Form

Expr = Any  # a TVM expression; its classes are not public names

#: Bytes of a step along rows, some vectors: several loads are on their way at a time.
_STEP = 256

#: (combined so far, another cell, its factor) -> combined with it.
_Combine = Callable[[Expr, Expr, Expr], Expr]


def _larger(largest: Expr, cell: Expr, factor: Expr) -> Expr:
    """NaN, once there is one: that is not below infinity. TVM has no vectors of `isnan`, and takes x == x for true."""
    larger = tirx.Select(largest > cell, largest, cell)
    return tirx.Select(largest <= tirx.const(float("inf"), str(largest.ty.dtype)), larger, largest)


def _added(total: Expr, cell: Expr, factor: Expr) -> Expr:
    return total + cell * factor


def _copied(last: Expr, cell: Expr, factor: Expr) -> Expr:
    return cell


#: What cells are combined with first, and how.
_COMBINATIONS: dict[str, tuple[float, _Combine]] = {
    gathered.MAX: (float("-inf"), _larger),
    gathered.SUM: (0.0, _added),
    gathered.COPY: (0, _copied),
}


def _counts(form: Form) -> Callable[[Expr, Expr], Expr]:
    """Gives how many cells a record of the numbers has."""
    return lambda numbers, record: T.int64(form.taps) if form.taps else numbers[record]


def _row_of_rows(form: Form) -> Any:
    """An inlined function: elements of the row in cache, of the rows of the input that a task's results take."""
    begin, combine = _COMBINATIONS[form.kind]
    dtype, accumulator, count = form.dtype, form.accumulator, _counts(form)

    @T.inline
    def row_of_rows(found, row, at, lanes, loop, x, first, numbers, factors, depth, height):  # type: ignore[no-untyped-def]
        for lane in loop(lanes):
            found[lane] = tirx.const(begin, accumulator)
        for i in range(count(numbers, depth)):
            for j in range(count(numbers, height)):
                place: T.let = first + at + numbers[depth + 1 + i] + numbers[height + 1 + j]
                factor: T.let = factors[depth + 1 + i] * factors[height + 1 + j]
                for lane in loop(lanes):
                    found[lane] = combine(found[lane], widen(x[place + lane], dtype, accumulator), factor)
        for lane in loop(lanes):
            row[at + lane] = found[lane]

    return row_of_rows


def _result_of_cells(form: Form) -> Any:
    """An inlined function: channels of a result, of the cells of the row in cache that it takes."""
    begin, combine = _COMBINATIONS[form.kind]
    dtype, accumulator, count = form.dtype, form.accumulator, _counts(form)

    @T.inline
    def result_of_cells(found, out, to, lanes, loop, row, first, numbers, factors, width):  # type: ignore[no-untyped-def]
        for lane in loop(lanes):
            found[lane] = tirx.const(begin, accumulator)
        for i in range(count(numbers, width)):
            place: T.let = numbers[width + 1 + i] + first
            factor: T.let = factors[width + 1 + i]
            for lane in loop(lanes):
                found[lane] = combine(found[lane], row[place + lane], factor)
        for lane in loop(lanes):
            out[to + lane] = narrow(found[lane], dtype, accumulator)

    return result_of_cells


def module(form: Form) -> IRModule:
    """The function gather(x, out, numbers, factors) on C-contiguous elements, channels last.

    It takes the addresses of the input, of the result, which must not overlap it, and of the numbers and factors of
    :func:`tvm_conv3d.compute.shared.gathered.tables` of that form.
    """
    accumulator, stored, lanes = form.accumulator, storage_dtype(form.dtype), form.lanes
    step = _STEP // np.dtype(accumulator).itemsize
    row_of_rows, result_of_cells = _row_of_rows(form), _result_of_cells(form)

    @T.prim_func
    def gather(x_: T.handle, out_: T.handle, numbers_: T.handle, factors_: T.handle):  # type: ignore[no-untyped-def]
        x = pointers.elements(x_, stored, align=1)
        out = pointers.elements(out_, stored, align=1)
        numbers = pointers.elements(numbers_, "int64", align=8)
        factors = pointers.elements(factors_, gathered.factors_of(form.dtype), align=4)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            pieces: T.let = numbers[gathered.PIECES]
            rows: T.let = numbers[gathered.OUT_HEIGHT]
            planes: T.let = numbers[gathered.OUT_DEPTH]
            channels: T.let = numbers[gathered.CHANNELS]
            # divisions that round down compile seventy times as long
            for task in T.parallel(numbers[gathered.TASKS]):
                row = T.alloc_buffer((gathered.LONGEST_ROW + lanes,), accumulator)
                several = T.alloc_buffer((step,), accumulator)
                vector = T.alloc_buffer((lanes,), accumulator)
                one = T.alloc_buffer((1,), accumulator)
                begin: T.let = task * numbers[gathered.TOGETHER]
                end: T.let = T.min(begin + numbers[gathered.TOGETHER], numbers[gathered.UNITS])
                for unit in range(begin, end):
                    line: T.let = T.truncdiv(unit, pieces)
                    piece: T.let = numbers[gathered.AT_PIECES] + gathered.PIECE * T.truncmod(unit, pieces)
                    plane: T.let = T.truncdiv(line, rows)
                    sample: T.let = T.truncdiv(plane, planes)
                    depth: T.let = (
                        numbers[gathered.AT_DEPTH] + T.truncmod(plane, planes) * numbers[gathered.RECORD_DEPTH]
                    )
                    height: T.let = (
                        numbers[gathered.AT_HEIGHT] + T.truncmod(line, rows) * numbers[gathered.RECORD_HEIGHT]
                    )
                    start: T.let = numbers[piece + 2]
                    length: T.let = numbers[piece + 3]
                    x0: T.let = sample * numbers[gathered.SAMPLE] + start
                    # where the last step is not whole, it begins earlier and computes some elements again
                    for part in range(T.Select(length < step, T.int64(0), (length + step - 1) // step)):
                        at: T.let = T.min(part * step, length - step)
                        row_of_rows(several, row, at, step, T.vectorized, x, x0, numbers, factors, depth, height)
                    for at in range(T.Select(length < step, length, T.int64(0))):
                        row_of_rows(one, row, at, 1, T.serial, x, x0, numbers, factors, depth, height)
                    first: T.let = numbers[piece]
                    last: T.let = numbers[piece + 1]
                    for result in range(first, last):
                        width: T.let = numbers[gathered.AT_WIDTH] + result * numbers[gathered.RECORD_WIDTH]
                        to: T.let = (line * numbers[gathered.OUT_WIDTH] + result) * channels
                        if result < last - numbers[gathered.SPARE]:
                            for part in range((channels + lanes - 1) // lanes):
                                c: T.let = part * lanes
                                result_of_cells(
                                    vector, out, to + c, lanes, T.vectorized, row, c - start, numbers, factors, width
                                )
                        else:
                            for c in range(channels):
                                result_of_cells(one, out, to + c, 1, T.serial, row, c - start, numbers, factors, width)

    return pointers.module({"gather": gather})
