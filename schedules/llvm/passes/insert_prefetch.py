"""Fetches the input of the next register tile while this one is computed.

The input positions of a tile, or its rows of planes, lie too far apart for the hardware's prefetcher, and where each is
read once, from memory, every tile waits for its first access: a pointwise layer with 64 channels takes 1.3 to 1.7 times
as long. So the loop over channels prefetches lines of the next tile, an equal share of them in each step.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import X
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import marks
from tvm_conv3d.schedules.llvm.passes.lower_to_loops import values_in

#: Annotation of a loop over channels: a :class:`_Tile` as JSON.
_AHEAD = "tvm_conv3d.fetches_ahead"

#: What a tile reads: positions with all channels, for the direct convolution, or rows of planes as they lie.
POSITIONS, PLANES = "positions", "planes"

#: Bytes of a cache line.
LINE = 64


_NAME = "tvm_conv3d_prefetch"

#: The address may lie behind the input, where nothing is fetched: so its offset is an integer, and not `inbounds`.
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


@dataclass(frozen=True)
class _Tile:
    """What a marked loop is told: the next tile, and the input that it lies in.

    Attributes:
        of: what it reads, `POSITIONS` or `PLANES`.
        rows, columns: of the register tile.
        size: depth, height and width of the input.
        channels: of the input.
        strides: of the windows.
        taps: of a window's row.
        item: bytes of an element.
    """

    of: str
    rows: int
    columns: int
    size: tuple[int, int, int]
    channels: int
    strides: tuple[int, int, int]
    taps: int
    item: int

    @property
    def line(self) -> int:
        """Elements of a cache line."""
        return LINE // self.item


def mark(sch: Schedule, task: LoopRV, channel: LoopRV, spec: CanonicalSpec, of: str, tile: tuple[int, int]) -> None:
    """Marks the loop over channels of register tiles, inside of the parallel loop `task`.

    Args:
        sch: the schedule.
        task: the loop over tasks.
        channel: the loop over channels.
        spec: the problem.
        of: what the tile reads, `POSITIONS` or `PLANES`.
        tile: rows and columns of it.
    """
    item = np.dtype(spec.dtype).itemsize
    told = _Tile(of, *tile, spec.size, spec.channels, spec.strides, spec.kernel[2], item)
    sch.annotate(channel, _AHEAD, json.dumps(asdict(told)))
    give_function(sch, task)


def give_function(sch: Schedule, task: LoopRV) -> None:
    """Gives the function that :func:`with_fetches` calls to a parallel loop."""
    sch.annotate(task, "pragma_import_llvm", _FUNCTION)


def with_fetches(
    function: tirx.PrimFunc, mark: str, name: str, places: Callable[[tirx.For, Any], Iterable[Any]]
) -> tirx.PrimFunc:
    """`function` with fetches in the place of a mark: at the start of every loop that has it.

    Args:
        function: as scheduled.
        mark: the annotation.
        name: of the parameter that is fetched from: nothing else says which stands where.
        places: (loop, parameter) -> elements of its memory, one in each line; some may lie behind it.
    """
    tensor = next(given for given in function.params if str(given.name) == name)
    base = tirx.address_of(tirx.BufferLoad(tensor, [0] * len(tensor.shape)))
    item = int(tensor.dtype.itemsize)

    def fetching(loop: tirx.For) -> tirx.For:
        if mark not in loop.annotations:
            return loop
        # large tensors have indices of 64 bits, which the function does not take
        if str(loop.loop_var.ty.dtype) != "int32":
            return marks.without(loop, mark)
        calls = [tirx.call_extern("void", _NAME, base, place * item) for place in places(loop, tensor)]
        return marks.without(loop, mark, body=tirx.SeqStmt([*map(tirx.Evaluate, calls), loop.body]))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, fetching)))


@marks.function_pass("prefetch_next_tile", _AHEAD)
def insert(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Puts the fetches of the next tile into every marked loop."""

    def lines(loop: tirx.For, _: Any) -> Iterator[Any]:
        tile = _Tile(**json.loads(str(loop.annotations[_AHEAD])))
        return _LINES[tile.of](values_in(loop), tile)

    return with_fetches(function, _AHEAD, X, lines)


def _lines_of_positions(values: list[Any], tile: _Tile) -> Iterator[Any]:
    """Of each row of the next tile the share that a step uses."""
    n, _, _, d, row_tile, _, column_tile, *_, tap_d, tap_h, tap_w, channel = values
    depth, height, width = tile.size
    # a window's row is this long, and as many steps share its columns
    run = tile.taps * tile.channels
    for hi, line in itertools.product(range(tile.rows), range(0, tile.columns, tile.line)):
        at = (tap_w * tile.channels + channel) * tile.columns + line
        if tile.taps < tile.strides[2]:
            at = at // run * (tile.strides[2] * tile.channels) + at % run
        row = (n * depth + d * tile.strides[0] + tap_d) * height + (row_tile * tile.rows + hi) * tile.strides[1] + tap_h
        position = row * width + (column_tile + 1) * (tile.columns * tile.strides[2])
        yield position * tile.channels + at


def _lines_of_planes(values: list[Any], tile: _Tile) -> Iterator[Any]:
    """The same row further on."""
    n, _, _, d, row_tile, column_tile, *_, tap_d, tap_h, _, channel = values
    depth, height, width = tile.size
    for hi, line in itertools.product(range(tile.rows), range(0, tile.columns, tile.line)):
        row = ((n * tile.channels + channel) * depth + d * tile.strides[0] + tap_d) * height
        row += (row_tile * tile.rows + hi) * tile.strides[1] + tap_h
        yield row * width + (column_tile + 1) * tile.columns + line


#: (values of the axes of block `conv` in one step, tile) -> elements of the input, one in each line that the step asks
#: for.
_LINES: dict[str, Callable[[list[Any], _Tile], Iterator[Any]]] = {
    POSITIONS: _lines_of_positions,
    PLANES: _lines_of_planes,
}
