"""Fetches the input of the next register tile while this one is computed.

The cells of a tile, or its rows of planes, lie too far apart for the hardware to foresee where the next ones begin, and
where each is read once, from memory, every tile waits for its first touch: a pointwise layer with 64 channels takes 1.3
to 1.7 times as long. So the loop over channels asks for lines of the next tile, in each step as many as the steps must
share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm_ffi
from tvm import IRModule, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.rewrites.lower import values_in

#: Annotation of a loop over channels: rows and columns of the register tile.
_AHEAD = "tvm_conv3d.fetches_ahead"

#: Bytes of a cache line.
_LINE = 64

#: Most bytes of an input, so that a place behind it still has a number of 32 bits.
_MOST = 2**30

_NAME = "tvm_conv3d_prefetch"

#: The address may lie behind the input, where nothing is fetched: so it is computed from a number, not `inbounds`.
#: A fetch touches no memory that LLVM should think of, or it would store all sums before each.
_FUNCTION = f"""
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define void @{_NAME}(ptr %base, i32 %bytes) alwaysinline nounwind {{
  %offset = zext i32 %bytes to i64
  %place = getelementptr i8, ptr %base, i64 %offset
  call void @llvm.prefetch.p0(ptr %place, i32 0, i32 3, i32 1) memory(inaccessiblemem: readwrite)
  ret void
}}
"""


#: (values of the axes of block `conv` in one step, spec, rows and columns of the tile) -> elements of the input, one
#: in each line that the step asks for.
Lines = Callable[[list[Any], CanonicalSpec, int, int], Iterator[Any]]


def pays(spec: CanonicalSpec) -> bool:
    """Whether each input is read by one window and set of filters only, and has its place in 32 bits."""
    once = all(k <= stride for k, stride in zip(spec.kernel, spec.strides, strict=True))
    return once and spec.sets == 1 and math.prod(spec.input_shape) * np.dtype(spec.dtype).itemsize <= _MOST


def mark(sch: Schedule, task: LoopRV, channel: LoopRV, rows: int, columns: int) -> None:
    """Marks the loop over channels of tiles of `rows` x `columns` cells, inside of the parallel loop `task`."""
    sch.annotate(channel, _AHEAD, [rows, columns])
    sch.annotate(task, "pragma_import_llvm", _FUNCTION)


def insert(module: IRModule, spec: CanonicalSpec, lines: Lines) -> IRModule:
    """Puts the fetches of `lines` into every marked loop."""
    function = module["main"]
    x = function.params[0]
    item = np.dtype(spec.dtype).itemsize

    def fetching(loop: tirx.For) -> tirx.For:
        if _AHEAD not in loop.annotations:
            return loop
        rows, columns = map(int, loop.annotations[_AHEAD])
        others = {key: value for key, value in loop.annotations.items() if key != _AHEAD}
        body = loop.body
        # large tensors have indices of 64 bits, which the function does not take
        if str(loop.loop_var.ty.dtype) == "int32":
            base = tirx.address_of(tirx.BufferLoad(x, [0] * len(x.shape)))
            places = lines(values_in(loop), spec, rows, columns)
            fetches = [tirx.Evaluate(tirx.call_extern("void", _NAME, base, place * item)) for place in places]
            body = tirx.SeqStmt([*fetches, body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, others)

    body = tvm_ffi.structural_map(function.body, (tirx.For, fetching))
    return IRModule({"main": function.with_body(body)})


def lines_of_cells(values: list[Any], spec: CanonicalSpec, rows: int, columns: int) -> Iterator[Any]:
    """For `compute.direct`: of each row of the next tile the share that a step uses."""
    n, _, _, d, row_tile, _, column_tile, *_, tap_d, tap_h, tap_w, channel = values
    depth, height, width = spec.size
    # a window's row is this long, and as many steps share its columns
    run = spec.kernel[2] * spec.channels
    for hi, piece in itertools.product(range(rows), range(0, columns, _elements(spec))):
        at = (tap_w * spec.channels + channel) * columns + piece
        if spec.kernel[2] < spec.strides[2]:
            at = at // run * (spec.strides[2] * spec.channels) + at % run
        row = (n * depth + d * spec.strides[0] + tap_d) * height + (row_tile * rows + hi) * spec.strides[1] + tap_h
        cell = row * width + (column_tile + 1) * (columns * spec.strides[2])
        yield cell * spec.channels + at


def lines_of_planes(values: list[Any], spec: CanonicalSpec, rows: int, columns: int) -> Iterator[Any]:
    """For `compute.planes`, of rows that are read as they lie: the same row further on."""
    n, _, _, d, row_tile, column_tile, *_, tap_d, tap_h, _, channel = values
    depth, height, width = spec.size
    for hi, piece in itertools.product(range(rows), range(0, columns, _elements(spec))):
        row = ((n * spec.channels + channel) * depth + d * spec.strides[0] + tap_d) * height
        row += (row_tile * rows + hi) * spec.strides[1] + tap_h
        yield row * width + (column_tile + 1) * columns + piece


def _elements(spec: CanonicalSpec) -> int:
    """Of a line."""
    return _LINE // np.dtype(spec.dtype).itemsize
