"""What training needs beside convolutions, in loops: maxima that know their places, and gradients passed back.

Windows do not overlap, data have the channels last, and sizes are known at the call only.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import pointers

#: Elements of the vectors that loops are made of.
LANES = 16


def module(dtype: str) -> IRModule:
    """The functions for data of "float32" or "float64"; pointers, and sizes as int64.

    maxima(x, out, taps, *sizes)
                        the maximum of each window, and the number of its cell in the window, as uint8: the first of
                        equal ones, the first NaN
    spread(gradient, taps, out, *sizes)
                        the gradient of x from that of out: each window's in the cell of its maximum, zeros in its
                        others; cells of no window are not written
    passed(y, gradient, out, elements, chunk)
                        the gradient of what a ReLU made y of: that of y, 0 where y is not positive; a task has `chunk`

    `sizes`: batch, depth, height and width of x, those of out, channels, those of a window.
    """
    return pointers.module({"maxima": _maxima(dtype), "spread": _spread(dtype), "passed": _passed(dtype)})


def _maxima(dtype: str) -> Any:
    infinity = tirx.const(float("inf"), dtype)

    @T.inline
    def begin(out, taps, to):  # type: ignore[no-untyped-def]
        out[to] = -infinity
        taps[to] = T.uint8(0)

    @T.inline
    def take(x, out, taps, at, to, tap):  # type: ignore[no-untyped-def]
        # a NaN is neither greater than the maximum, nor at most as large
        number: T.let = T.Cast("uint8", tap)
        taps[to] = T.Select(x[at] <= out[to], taps[to], T.Select(out[to] <= infinity, number, taps[to]))
        out[to] = T.Select(x[at] <= out[to], out[to], T.Select(out[to] <= infinity, x[at], out[to]))

    @T.prim_func
    def maxima(  # type: ignore[no-untyped-def]
        x_: T.handle,
        out_: T.handle,
        taps_: T.handle,
        batch: T.int64,
        depth: T.int64,
        height: T.int64,
        width: T.int64,
        out_depth: T.int64,
        out_height: T.int64,
        out_width: T.int64,
        channels: T.int64,
        kd: T.int64,
        kh: T.int64,
        kw: T.int64,
    ):
        x = pointers.elements(x_, dtype, align=4)
        out = pointers.elements(out_, dtype, align=4)
        taps = pointers.elements(taps_, "uint8", align=1)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            for task in T.parallel(batch * out_depth * out_height):
                plane: T.let = task // out_height // out_depth * depth + task // out_height % out_depth * kd
                row: T.let = task % out_height * kh
                for cell in range(out_width):
                    to: T.let = (task * out_width + cell) * channels
                    for vector in range(channels // LANES):
                        for lane in T.vectorized(T.int64(LANES)):
                            begin(out, taps, to + vector * LANES + lane)
                    for c in range(channels // LANES * LANES, channels):
                        begin(out, taps, to + c)
                    for d, h, w in T.grid(kd, kh, kw):
                        at: T.let = (((plane + d) * height + row + h) * width + cell * kw + w) * channels
                        tap: T.let = (d * kh + h) * kw + w
                        for vector in range(channels // LANES):
                            for lane in T.vectorized(T.int64(LANES)):
                                i: T.let = vector * LANES + lane
                                take(x, out, taps, at + i, to + i, tap)
                        for c in range(channels // LANES * LANES, channels):
                            take(x, out, taps, at + c, to + c, tap)

    return maxima


def _spread(dtype: str) -> Any:
    @T.inline
    def give(gradient, taps, out, at, to, tap):  # type: ignore[no-untyped-def]
        out[to] = T.Select(taps[at] == T.Cast("uint8", tap), gradient[at], tirx.const(0, dtype))

    @T.prim_func
    def spread(  # type: ignore[no-untyped-def]
        gradient_: T.handle,
        taps_: T.handle,
        out_: T.handle,
        batch: T.int64,
        depth: T.int64,
        height: T.int64,
        width: T.int64,
        out_depth: T.int64,
        out_height: T.int64,
        out_width: T.int64,
        channels: T.int64,
        kd: T.int64,
        kh: T.int64,
        kw: T.int64,
    ):
        gradient = pointers.elements(gradient_, dtype, align=4)
        taps = pointers.elements(taps_, "uint8", align=1)
        out = pointers.elements(out_, dtype, align=4)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            for task in T.parallel(batch * out_depth * out_height):
                plane: T.let = task // out_height // out_depth * depth + task // out_height % out_depth * kd
                row: T.let = task % out_height * kh
                for d, h, cell, w in T.grid(kd, kh, out_width, kw):
                    at: T.let = (task * out_width + cell) * channels
                    to: T.let = (((plane + d) * height + row + h) * width + cell * kw + w) * channels
                    tap: T.let = (d * kh + h) * kw + w
                    for vector in range(channels // LANES):
                        for lane in T.vectorized(T.int64(LANES)):
                            i: T.let = vector * LANES + lane
                            give(gradient, taps, out, at + i, to + i, tap)
                    for c in range(channels // LANES * LANES, channels):
                        give(gradient, taps, out, at + c, to + c, tap)

    return spread


def _passed(dtype: str) -> Any:
    @T.inline
    def let_pass(y, gradient, out, i):  # type: ignore[no-untyped-def]
        # as torch's, NaN lets it pass
        out[i] = T.Select(y[i] <= tirx.const(0, dtype), tirx.const(0, dtype), gradient[i])

    @T.prim_func
    def passed(  # type: ignore[no-untyped-def]
        y_: T.handle, gradient_: T.handle, out_: T.handle, elements: T.int64, chunk: T.int64
    ):
        y = pointers.elements(y_, dtype, align=4)
        gradient = pointers.elements(gradient_, dtype, align=4)
        out = pointers.elements(out_, dtype, align=4)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            for task in T.parallel((elements + chunk - 1) // chunk):
                first: T.let = task * chunk
                length: T.let = T.min(chunk, elements - first)
                for vector in range(length // LANES):
                    for lane in T.vectorized(T.int64(LANES)):
                        let_pass(y, gradient, out, first + vector * LANES + lane)
                for i in range(length // LANES * LANES, length):
                    let_pass(y, gradient, out, first + i)

    return passed
