"""Loops over data with NaN and infinity, for sizes known at the call only: what no spec's plan holds.

Elements are read as integers, in which a number that is not finite has all bits of the exponent set. A *mark* tells of
the elements at a position, or under a window, which are not finite: their number where all are infinite, infinity where
one is NaN, and 0 where there is none. So a window's mark is the sum of its positions'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm import IRModule
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import pointers
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.stages import finish


class Bits(NamedTuple):
    """An element type's bits.

    Attributes:
        integer: type of the same size.
        magnitude: all bits but the sign.
        exponent: of infinity; those of NaN are larger.
    """

    integer: str
    magnitude: int
    exponent: int


BITS = {
    "float32": Bits("int32", 0x7FFFFFFF, 0x7F800000),
    "float16": Bits("int16", 0x7FFF, 0x7C00),
    "bfloat16": Bits("int16", 0x7FFF, 0x7F80),
}

#: What a NaN counts among channels of a group, an infinity being one; it is more than there are channels.
_NAN = 1 << 16

#: Positions of a task.
_ROWS, _COLUMNS, _ELEMENTS = 64, 1024, 4096


def module(dtype: str) -> IRModule:
    """The functions for data of an element type, in groups of less than 2^15 channels; sizes and steps are int64.

    split_rows(x, clean, marks, channels) (rows x channels,) twice, and (rows,)
    split_planes(x, clean, marks)         (groups, channels, positions) twice, and (groups, positions)
    signs(x, signs)                       (elements,) twice: -1 or 1 for an infinity, else 0, in float32
    box(marks, sums, taps, stride, dilation, before, together)
                                          along the middle axis: (outer, positions, inner) to (outer, windows, inner);
                                          a task has `together` windows
    mend_rows(marks, sums, table, out)    marks: (rows, groups), out: (rows, groups, filters of a group)
    mend_planes(marks, sums, table, out, summed)
                                          marks: (samples, groups, positions), out: (samples, groups, filters of a
                                          group, positions); `summed` is 0 where no sum is to be read

    `clean` has zeros for what is not finite. In mending, `sums` are those of signs, (elements of `out`,), read
    where a mark is finite only; and `table` (3, groups, filters of a group) holds the results of sums that are NaN,
    infinity and minus infinity.
    """
    functions = {**_splits(BITS[dtype]), "signs": _signs(BITS[dtype]), "box": _box(), **_mends(BITS[dtype].integer)}
    return pointers.module(functions)


def results_module(spec: CanonicalSpec) -> IRModule:
    """What the layer makes of sums that are NaN, infinity and minus infinity, the `kinds` (3,).

    results(bias, kinds, out)             bias: (filters,), out: (3, filters); where there is no residual operand
    mend_adding(marks, sums, bias, kinds, residual, out, together)
                                          where there is one, in the place of mending: marks: (samples, groups,
                                          positions), bias: (groups, filters of a group), residual and out: (samples,
                                          groups, filters of a group, positions); a task has `together` times
                                          `positions` elements; `sums` as in mending

    Of `spec` its types, bias and post-ops count.
    """
    name, function = ("mend_adding", _mend_adding(spec)) if spec.residual else ("results", _results(spec))
    return pointers.module({name: function})


def _results(spec: CanonicalSpec) -> Any:
    accumulator, stored = spec.accumulator, storage_dtype(spec.dtype)

    @T.prim_func
    def results(bias_: T.handle, kinds_: T.handle, out_: T.handle):  # type: ignore[no-untyped-def]
        filters = T.int64()
        bias = T.match_buffer(bias_, (filters,), accumulator, align=4)
        kinds = T.match_buffer(kinds_, (3,), accumulator, align=4)
        out = T.match_buffer(out_, (3, filters), stored, align=2)
        for i in range(3):
            for f in range(filters):
                out[i, f] = finish(spec, kinds[i], bias[f])

    return results


def _mend_adding(spec: CanonicalSpec) -> Any:
    accumulator, output = spec.accumulator, spec.dtypes.output
    stored = storage_dtype(output)

    @T.prim_func
    def mend_adding(  # type: ignore[no-untyped-def]
        marks_: T.handle,
        sums_: T.handle,
        bias_: T.handle,
        kinds_: T.handle,
        residual_: T.handle,
        out_: T.handle,
        together: T.int64,
    ):
        samples, groups, filters, positions = T.int64(), T.int64(), T.int64(), T.int64()
        elements = T.int64()
        marks = T.match_buffer(marks_, (samples, groups, positions), "float32", align=4)
        sums = T.match_buffer(sums_, (elements,), "float32", align=4)
        bias = T.match_buffer(bias_, (groups, filters), accumulator, align=4)
        kinds = T.match_buffer(kinds_, (3,), accumulator, align=4)
        residual = T.match_buffer(residual_, (samples, groups, filters, positions), stored, align=2)
        out = T.match_buffer(out_, (samples, groups, filters, positions), stored, align=2)
        rows: T.let = samples * groups * filters
        for task in T.parallel((rows + together - 1) // together):
            for line in range(T.min(together, rows - task * together)):
                row: T.let = task * together + line
                n: T.let = row // (groups * filters)
                g: T.let = row // filters % groups
                f: T.let = row % filters
                for i in range(positions):
                    mark: T.let = marks[n, g, i]
                    if mark > T.float32(0):
                        kind: T.int32 = 0
                        if mark < T.infinity("float32"):
                            sum_: T.let = sums[row * positions + i]
                            negative: T.let = T.Select(sum_ < T.float32(0.5) - mark, 2, 0)
                            kind = T.Select(sum_ > mark - T.float32(0.5), 1, negative)
                        added: T.let = widen(residual[n, g, f, i], output, accumulator)
                        out[n, g, f, i] = finish(spec, kinds[kind], bias[g, f], added)

    return mend_adding


def _splits(bits: Bits) -> dict[str, Any]:
    integer, magnitude, exponent = bits

    @T.prim_func
    def split_rows(x_: T.handle, clean_: T.handle, marks_: T.handle, channels: T.int64):  # type: ignore[no-untyped-def]
        rows, elements = T.int64(), T.int64()
        x = T.match_buffer(x_, (elements,), integer, align=2)
        clean = T.match_buffer(clean_, (elements,), integer, align=2)
        marks = T.match_buffer(marks_, (rows,), "float32", align=4)
        for task in T.parallel((rows + _ROWS - 1) // _ROWS):
            first: T.let = task * _ROWS
            last: T.let = T.min(rows, first + _ROWS)
            # a loop that reduces as well as stores would not be vectorized
            largest: T.int32 = 0
            for i in range(first * channels, last * channels):
                largest = T.max(largest, T.Cast("int32", x[i] & T.Cast(integer, magnitude)))
            for i in range(first * channels, last * channels):
                finite: T.let = (x[i] & T.Cast(integer, magnitude)) < T.Cast(integer, exponent)
                clean[i] = T.Select(finite, x[i], T.Cast(integer, 0))
            for row in range(first, last):
                marks[row] = T.float32(0)
                # where a whole position is left out, as outside of a mask, its first channel tells
                if largest > exponent and (x[row * channels] & T.Cast(integer, magnitude)) > T.Cast(integer, exponent):
                    marks[row] = T.infinity("float32")
                elif largest >= exponent:
                    count: T.int32 = 0
                    for c in range(channels):
                        m: T.let = x[row * channels + c] & T.Cast(integer, magnitude)
                        infinite: T.let = m == T.Cast(integer, exponent)
                        count = count + T.Select(m < T.Cast(integer, exponent), 0, T.Select(infinite, 1, _NAN))
                    marks[row] = T.Select(count < _NAN, T.Cast("float32", count), T.infinity("float32"))

    @T.prim_func
    def split_planes(x_: T.handle, clean_: T.handle, marks_: T.handle):  # type: ignore[no-untyped-def]
        groups, channels, positions = T.int64(), T.int64(), T.int64()
        x = T.match_buffer(x_, (groups, channels, positions), integer, align=2)
        clean = T.match_buffer(clean_, (groups, channels, positions), integer, align=2)
        marks = T.match_buffer(marks_, (groups, positions), "float32", align=4)
        tasks: T.let = (positions + _COLUMNS - 1) // _COLUMNS
        for task in T.parallel(groups * tasks):
            g: T.let = task // tasks
            first: T.let = task % tasks * _COLUMNS
            columns: T.let = T.min(T.int64(_COLUMNS), positions - first)
            for i in range(columns):
                marks[g, first + i] = T.float32(0)
            for c in range(channels):
                for i in range(columns):
                    m: T.let = x[g, c, first + i] & T.Cast(integer, magnitude)
                    finite: T.let = m < T.Cast(integer, exponent)
                    infinite: T.let = m == T.Cast(integer, exponent)
                    mark: T.let = T.Select(
                        finite, T.float32(0), T.Select(infinite, T.float32(1), T.infinity("float32"))
                    )
                    marks[g, first + i] = marks[g, first + i] + mark
                    clean[g, c, first + i] = T.Select(finite, x[g, c, first + i], T.Cast(integer, 0))

    return {"split_rows": split_rows, "split_planes": split_planes}


def _signs(bits: Bits) -> Any:
    integer, magnitude, exponent = bits

    @T.prim_func
    def signs(x_: T.handle, signs_: T.handle):  # type: ignore[no-untyped-def]
        elements = T.int64()
        x = T.match_buffer(x_, (elements,), integer, align=2)
        out = T.match_buffer(signs_, (elements,), "float32", align=4)
        for task in T.parallel((elements + _ELEMENTS - 1) // _ELEMENTS):
            for i in range(T.min(T.int64(_ELEMENTS), elements - task * _ELEMENTS)):
                value: T.let = x[task * _ELEMENTS + i]
                sign: T.let = T.Select(value < T.Cast(integer, 0), T.float32(-1), T.float32(1))
                infinite: T.let = (value & T.Cast(integer, magnitude)) == T.Cast(integer, exponent)
                out[task * _ELEMENTS + i] = T.Select(infinite, sign, T.float32(0))

    return signs


def _box() -> Any:
    @T.prim_func
    def box(  # type: ignore[no-untyped-def]
        marks_: T.handle,
        sums_: T.handle,
        taps: T.int64,
        stride: T.int64,
        dilation: T.int64,
        before: T.int64,
        together: T.int64,
    ):
        outer, positions, windows, inner = T.int64(), T.int64(), T.int64(), T.int64()
        marks = T.match_buffer(marks_, (outer, positions, inner), "float32", align=4)
        sums = T.match_buffer(sums_, (outer, windows, inner), "float32", align=4)
        tasks: T.let = (windows + together - 1) // together
        for task in T.parallel(outer * tasks):
            a: T.let = task // tasks
            first: T.let = task % tasks * together
            last: T.let = T.min(windows, first + together)
            for window in range(first, last):
                for i in range(inner):
                    sums[a, window, i] = T.float32(0)
            for tap in range(taps):
                at: T.let = tap * dilation - before
                # windows of which the tap lies on the input
                low: T.let = T.max(first, (T.max(T.int64(0), -at) + stride - 1) // stride)
                high: T.let = T.min(last, (T.max(T.int64(0), positions - at) + stride - 1) // stride)
                for window in range(low, T.max(low, high)):
                    for i in range(inner):
                        sums[a, window, i] = sums[a, window, i] + marks[a, window * stride + at, i]

    return box


def _mends(integer: str) -> dict[str, Any]:
    @T.prim_func
    def mend_rows(marks_: T.handle, sums_: T.handle, table_: T.handle, out_: T.handle):  # type: ignore[no-untyped-def]
        rows, groups, filters, elements = T.int64(), T.int64(), T.int64(), T.int64()
        marks = T.match_buffer(marks_, (rows, groups), "float32", align=4)
        sums = T.match_buffer(sums_, (elements,), "float32", align=4)
        table = T.match_buffer(table_, (3, groups, filters), integer, align=2)
        out = T.match_buffer(out_, (rows, groups, filters), integer, align=2)
        for task in T.parallel((rows + _ROWS - 1) // _ROWS):
            for i in range(T.min(T.int64(_ROWS), rows - task * _ROWS)):
                for g in range(groups):
                    mark: T.let = marks[task * _ROWS + i, g]
                    at: T.let = ((task * _ROWS + i) * groups + g) * filters
                    if mark == T.infinity("float32"):
                        for f in range(filters):
                            out[task * _ROWS + i, g, f] = table[0, g, f]
                    elif mark > T.float32(0):
                        for f in range(filters):
                            negative: T.let = sums[at + f] < T.float32(0.5) - mark
                            otherwise: T.let = T.Select(negative, table[2, g, f], table[0, g, f])
                            positive: T.let = sums[at + f] > mark - T.float32(0.5)
                            out[task * _ROWS + i, g, f] = T.Select(positive, table[1, g, f], otherwise)

    @T.prim_func
    def mend_planes(  # type: ignore[no-untyped-def]
        marks_: T.handle, sums_: T.handle, table_: T.handle, out_: T.handle, summed: T.int64
    ):
        samples, groups, filters, positions = T.int64(), T.int64(), T.int64(), T.int64()
        elements = T.int64()
        marks = T.match_buffer(marks_, (samples, groups, positions), "float32", align=4)
        sums = T.match_buffer(sums_, (elements,), "float32", align=4)
        table = T.match_buffer(table_, (3, groups, filters), integer, align=2)
        out = T.match_buffer(out_, (samples, groups, filters, positions), integer, align=2)
        for task in T.parallel(samples * groups * filters):
            n: T.let = task // (groups * filters)
            g: T.let = task // filters % groups
            f: T.let = task % filters
            nan: T.let = table[0, g, f]
            if summed == 0:
                for i in range(positions):
                    if marks[n, g, i] > T.float32(0):
                        out[n, g, f, i] = nan
            else:
                infinity: T.let = table[1, g, f]
                minus_infinity: T.let = table[2, g, f]
                for i in range(positions):
                    mark: T.let = marks[n, g, i]
                    if mark > T.float32(0):
                        sum_: T.let = sums[task * positions + i]
                        negative: T.let = sum_ < T.float32(0.5) - mark
                        otherwise: T.let = T.Select(negative, minus_infinity, nan)
                        out[n, g, f, i] = T.Select(sum_ > mark - T.float32(0.5), infinity, otherwise)

    return {"mend_rows": mend_rows, "mend_planes": mend_planes}
