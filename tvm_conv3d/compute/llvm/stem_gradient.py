"""The gradient of weights of a convolution of few channels, where maxima of windows side by side are taken behind it.

Only the cell of a window's maximum has a gradient, so that of the convolution's result, the largest array of most
networks, is made a vector at a time and multiplied at once: it is neither written nor read. Sums of all products of a
filter and the taps, or as many taps as registers hold, stay in registers along a row. Data have the channels last,
sizes are known at the call only.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import pointers
from tvm_conv3d.compute.shared.stem_form import Form


def module(form: Form) -> IRModule:
    """The functions of :attr:`Form.functions`, each (x, gradient, cells, sums, *sizes); pointers, and sizes as int64.

    x: the convolution's input; gradient: that of the maxima; cells: the numbers of their cells in their windows, as
    uint8; sums: (batch * depth of the maxima, rows + 1, filters), of which a function writes its rows, of one plane of
    windows each, and the last one, the sum of the gradient. `sizes`: batch, depth, height and width of x, those of
    the maxima, filters, which fill whole vectors, and depth, height and width of a window.
    """
    return pointers.module({name: _rows(form, rows) for name, rows in form.functions.items()})


def _rows(form: Form, rows: range) -> Any:
    lanes, first, count = form.lanes, rows.start, len(rows)
    (_, kh, kw), channels = form.kernel, form.channels
    zero = tirx.const(0, "float32")

    @T.inline
    def add_vector(  # type: ignore[no-untyped-def]
        x, gradient, cells, sums, given, part, corner, from_, to, height, width, cell_count, filters, wd, wh, ww
    ):
        for row in T.unroll(count + 1):
            for lane in T.vectorized(lanes):
                part[row * lanes + lane] = zero
        for cell in range(cell_count):
            # of sizes that the compiler does not know: unrolled, loops would keep inputs of two cells in registers
            for d, h, w in T.grid(wd, wh, ww):
                for lane in T.vectorized(lanes):
                    at: T.let = from_ + cell * filters + lane
                    number: T.let = T.Cast("uint8", (d * wh + h) * ww + w)
                    given[lane] = T.Select(cells[at] == number, gradient[at], zero)
                place: T.let = corner + ((d * height + h) * width + cell * ww + w) * channels
                for row in T.unroll(count):
                    tap: T.let = (first + row) // channels
                    line: T.let = tap // kw // kh * height + tap // kw % kh
                    value: T.let = x[place + (line * width + tap % kw) * channels + (first + row) % channels]
                    for lane in T.vectorized(lanes):
                        part[row * lanes + lane] = part[row * lanes + lane] + given[lane] * value
                for lane in T.vectorized(lanes):
                    part[count * lanes + lane] = part[count * lanes + lane] + given[lane]
        for row in T.unroll(count):
            for lane in T.vectorized(lanes):
                i: T.let = to + (first + row) * filters + lane
                sums[i] = sums[i] + part[row * lanes + lane]
        for lane in T.vectorized(lanes):
            j: T.let = to + form.rows * filters + lane
            sums[j] = sums[j] + part[count * lanes + lane]

    @T.prim_func
    def function(  # type: ignore[no-untyped-def]
        x_: T.handle,
        gradient_: T.handle,
        cells_: T.handle,
        sums_: T.handle,
        batch: T.int64,
        depth: T.int64,
        height: T.int64,
        width: T.int64,
        out_depth: T.int64,
        out_height: T.int64,
        out_width: T.int64,
        filters: T.int64,
        wd: T.int64,
        wh: T.int64,
        ww: T.int64,
    ):
        x = pointers.elements(x_, "float32", align=4)
        gradient = pointers.elements(gradient_, "float32", align=4)
        cells = pointers.elements(cells_, "uint8", align=1)
        sums = pointers.elements(sums_, "float32", align=4)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            for task in T.parallel(batch * out_depth):
                given = T.alloc_buffer((lanes,), "float32")
                part = T.alloc_buffer(((count + 1) * lanes,), "float32")
                to: T.let = task * (form.rows + 1) * filters
                for i in range(count * filters):
                    sums[to + first * filters + i] = zero
                for i in range(filters):
                    sums[to + form.rows * filters + i] = zero
                plane: T.let = task // out_depth * depth + task % out_depth * wd
                for row in range(out_height):
                    corner: T.let = (plane * height + row * wh) * width * channels
                    from_: T.let = (task * out_height + row) * out_width * filters
                    for vector in range(filters // lanes):
                        add_vector(
                            x,
                            gradient,
                            cells,
                            sums,
                            given,
                            part,
                            corner,
                            from_ + vector * lanes,
                            to + vector * lanes,
                            height,
                            width,
                            out_width,
                            filters,
                            wd,
                            wh,
                            ww,
                        )

    return function
