"""Where the lanes of a warp read and write: the index expressions of a lowered kernel, evaluated.

Blocks and loop variables are sampled all over their ranges, independently of one another, as rows begin elsewhere in a
sector, and terms elsewhere in a row, from one to the next; threads are those of a block's first warp. Of unrolled loops
it is assumed what compilers do: what stays the same is read once, and neighbours in shared memory, whose alignment they
know, are moved as a vector where their place allows it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: Threads of a warp.
WARP = 32

#: Bytes of a sector of global memory.
SECTOR = 32

#: Places of blocks and loops that are looked at; a power of two.
SAMPLES = 8

#: The widest access of a lane, in bytes.
_WIDEST = 16

#: The kind of loops that are unrolled, as TVM numbers them.
_UNROLLED = 3

#: The call that begins an asynchronous copy.
_COPY = "tirx.s_tir.cp_async_raw"

#: Calls that move fragments -> what they do with memory, and which of their operands is the place.
_MATRIX = {"tirx.tvm_load_matrix_sync": ("load", 5), "tirx.tvm_store_matrix_sync": ("store", 5)}

_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    # of numbers that are not negative
    "Div": operator.floordiv,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "FloorMod": operator.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "LShift": operator.lshift,
    "RShift": operator.rshift,
    "BitwiseAnd": operator.and_,
    "BitwiseOr": operator.or_,
    "BitwiseXor": operator.xor,
    "And": np.logical_and,
    "Or": np.logical_or,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


@dataclass(frozen=True)
class Request:
    """What a warp asks for at once.

    Attributes:
        space: "shared" or "global".
        kind: "load" or "store".
        buffer: its name.
        bytes: of one lane.
        addresses: in bytes from the buffer's beginning, of the lanes that take part, for each sample.
        count: of such requests in a warp that runs the whole kernel.
        loops: that it stands in.
    """

    space: str
    kind: str
    buffer: str
    bytes: int
    addresses: tuple[tuple[int, ...], ...]
    count: int
    loops: tuple[Any, ...]


@dataclass(frozen=True)
class _Loop:
    var: Any
    extent: int
    unrolled: bool


class Lanes:
    """Evaluates a kernel of this grid and these blocks for the lanes of one warp."""

    def __init__(self, grid: Sequence[int], block: Sequence[int]) -> None:
        thread = np.arange(min(WARP, math.prod(block)))
        self._lanes = len(thread)
        self._places: dict[str, Any] = {}
        for axis, blocks, threads in zip("xyz", grid, block, strict=True):
            self._places[f"blockIdx.{axis}"] = _sampled(blocks, "xyz".index(axis))
            self._places[f"threadIdx.{axis}"] = thread % threads
            thread = thread // threads
        #: of variables: numbers, or expressions
        self._values: dict[Any, Any] = {}
        self._loops: list[_Loop] = []
        self._seen: set[Request] = set()
        #: lanes of each sample for which conditions hold
        self._mask: Any = True

    def requests(self, kernel: Any) -> list[Request]:
        """Those of a kernel's body."""
        return _merged(self._statement(kernel))

    def _statement(self, statement: Any) -> Iterator[Request]:
        kind = type(statement).__name__
        if kind == "SeqStmt":
            for part in statement.seq:
                yield from self._statement(part)
        elif kind == "For":
            yield from self._of_loop(statement)
        elif kind == "IfThenElse":
            yield from self._loads(statement.condition, self._mask)
            if not _reads(statement.condition):
                before = self._mask
                self._mask = np.logical_and(before, self._value(statement.condition))
                yield from self._statement(statement.then_case)
                self._mask = before
        elif kind == "AttrStmt":
            if statement.attr_key == "thread_extent":
                self._values[statement.node.var] = self._places[statement.node.thread_tag]
            yield from self._statement(statement.body)
        elif kind == "Bind":
            self._values[statement.var] = statement.value
        elif kind == "BufferStore":
            yield from self._loads(statement.value, self._mask)
            yield from self._access("store", statement.buffer, statement.indices, self._mask)
        elif kind == "Evaluate":
            yield from self._loads(statement.value, self._mask)

    def _of_loop(self, loop: Any) -> Iterator[Request]:
        extent, first = (int(np.max(self._value(e))) for e in (loop.extent, loop.min))
        self._values[loop.loop_var] = first + _sampled(extent, 3 + len(self._loops))
        self._loops.append(_Loop(loop.loop_var, max(1, extent), int(loop.kind) == _UNROLLED))
        yield from self._statement(loop.body)
        self._loops.pop()

    def _loads(self, expression: Any, mask: Any) -> Iterator[Request]:
        """What the value of an expression reads, in lanes of this mask."""
        name = _operator(expression)
        if name == "prim.if_then_else":
            condition, then, otherwise = expression.args
            yield from self._loads(condition, mask)
            met = self._value(condition)
            yield from self._loads(then, np.logical_and(mask, met))
            yield from self._loads(otherwise, np.logical_and(mask, np.logical_not(met)))
        elif name == _COPY:
            yield from self._copy(expression, mask)
        elif name in _MATRIX:
            yield from self._matrix(*_MATRIX[name], expression)
        elif type(expression).__name__ == "TensorLoad":
            yield from self._access("load", expression.source, expression.indices, mask)
        else:
            for part in _parts(expression):
                yield from self._loads(part, mask)

    def _access(self, kind: str, buffer: Any, indices: Sequence[Any], mask: Any, lanes: int = 1) -> Iterator[Request]:
        space = str(buffer.scope()).partition(".")[0] or "global"
        if space not in ("shared", "global"):
            return
        (index,) = indices
        item = bytes_of(str(buffer.dtype))
        if type(index).__name__ == "Ramp" and self._value(index.stride) != 1:
            # elements apart are moved one by one
            for number in range(int(index.lanes)):
                yield from self._access(kind, buffer, [index.base + number * index.stride], mask)
            return
        if type(index).__name__ == "Ramp":
            index, lanes = index.base, int(index.lanes)
        count, width, start = math.prod(loop.extent for loop in self._loops), item * lanes, self._value(index)
        for loop in reversed(self._loops):
            if not loop.unrolled or loop.extent == 1:
                continue
            first, second = self._value_at(index, loop.var, 0), self._value_at(index, loop.var, 1)
            if np.all(first == second) and kind == "load":
                count //= loop.extent
            elif space == "shared" and width == item and np.all(second - first == 1):
                fitting = (v for v in (8, 4, 2) if loop.extent % v == 0 and v * item <= _WIDEST)
                width = next((v * item for v in fitting if np.all(first % v == 0)), item)
                count, start = count // (width // item), first
        # wider vectors are moved in pieces
        count, width = count * max(1, width // _WIDEST), min(width, _WIDEST)
        shape = (SAMPLES, self._lanes)
        taking_part = np.broadcast_to(mask, shape)
        if not taking_part.any():
            taking_part = np.broadcast_to(True, shape)
        sampled = zip(np.broadcast_to(start * item, shape), taking_part, strict=True)
        places = [addresses[taken] for addresses, taken in sampled]
        yield from self._once(self._request(space, kind, buffer, width, places, count))

    def _copy(self, call: Any, mask: Any) -> Iterator[Request]:
        """An asynchronous copy from global to shared memory, where its condition holds."""
        to, to_offset, source, offset, width, *condition = call.args
        taking_part = np.logical_and(mask, self._value(condition[0])) if condition else mask
        lanes = int(width) // bytes_of(str(to.args[0].dtype))
        for kind, buffer, index, lane_mask in (
            ("load", source.args[0], offset, taking_part),
            # zeros elsewhere
            ("store", to.args[0], to_offset, mask),
        ):
            yield from self._access(kind, buffer, [index], lane_mask, lanes)

    def _matrix(self, kind: str, place: int, call: Any) -> Iterator[Request]:
        """Fragments of 16 x 16, which a warp moves as the instructions `ldmatrix` and `st.v2` do."""
        source, stride = call.args[place].args[0], int(call.args[place + 1])
        item = bytes_of(str(source.source.dtype))
        start = int(np.max(self._value(source.indices[0])))
        lane = np.arange(WARP)
        if kind == "load":
            # four matrices of 8 x 8, a row of 16 bytes for each lane
            parts = [(lane % 8 + 8 * (lane // 8 % 2), 8 * (lane // 16), 8 * item)]
        else:
            # pairs of neighbours in a row, which lie apart where columns are contiguous
            pairs = [(row + lane // 4, column + lane % 4 * 2) for row in (0, 8) for column in (0, 8)]
            parts = [(row, column, 2 * item) for row, column in pairs]
            if str(call.args[place + 2].value) == "col_major":
                parts = [(column + second, row, item) for row, column in pairs for second in (0, 1)]
        count = math.prod(loop.extent for loop in self._loops)
        for rows, columns, width in parts:
            places = (start + rows * stride + columns) * item
            yield from self._once(self._request("shared", kind, source.source, width, [places] * SAMPLES, count))

    def _request(self, space: str, kind: str, buffer: Any, width: int, places: Any, count: int) -> Request:
        loops = tuple(loop.var for loop in self._loops)
        addresses = tuple(tuple(map(int, lanes)) for lanes in places)
        return Request(space, kind, str(buffer.name), width, addresses, count, loops)

    def _once(self, request: Request) -> Iterator[Request]:
        """A load that was there before in the same loops stays in registers."""
        if request.kind == "store" or request not in self._seen:
            self._seen.add(request)
            yield request

    def _value_at(self, expression: Any, var: Any, number: int) -> Any:
        before, self._values[var] = self._values[var], number
        value = self._value(expression)
        self._values[var] = before
        return value

    def _value(self, expression: Any) -> Any:
        """A number, or one for each lane."""
        if isinstance(expression, (int, bool, np.ndarray, np.generic)):
            return expression
        kind = type(expression).__name__
        if kind == "IntImm":
            return int(expression.value)
        if kind == "Var":
            return self._value(self._values[expression])
        if kind in _BINARY:
            return _BINARY[kind](self._value(expression.a), self._value(expression.b))
        if kind == "Not":
            return np.logical_not(self._value(expression.a))
        if kind == "Cast":
            return self._value(expression.value)
        if kind == "Select" or _operator(expression) == "prim.if_then_else":
            condition, then, otherwise = _parts(expression)
            return np.where(self._value(condition), self._value(then), self._value(otherwise))
        # what depends on data decides on no address here
        return 1


def _merged(requests: Iterable[Request]) -> list[Request]:
    """Requests of shared memory for neighbours as one of vectors, where elements are aligned as these must be."""
    found = list(requests)
    for width in (1, 2, 4, 8):
        by_place = {
            (replace(r, addresses=()), r.addresses): r for r in found if r.bytes == width and r.space == "shared"
        }
        for (alike, places), request in list(by_place.items()):
            other = (alike, tuple(tuple(place + width for place in lanes) for lanes in places))
            if (alike, places) not in by_place or other not in by_place:
                continue
            if all(place % (2 * width) == 0 for lanes in places for place in lanes):
                found[found.index(request)] = replace(request, bytes=2 * width)
                found.remove(by_place.pop(other))
    return found


def _sampled(extent: int, stream: int) -> Any:
    """Places of a range, one for each sample; of different streams in different orders."""
    order = np.arange(SAMPLES) * (2 * stream + 1) % SAMPLES
    return ((2 * order + 1) * extent // (2 * SAMPLES))[:, None]


def bytes_of(dtype: str) -> int:
    """Bytes of an element, which may be a vector: "float32x4"."""
    one, _, lanes = dtype.partition("x")
    return max(1, int("".join(filter(str.isdigit, one)) or 8) // 8) * int(lanes or 1)


def _reads(expression: Any) -> bool:
    """Whether data decide on its value: what is done then is the exception here, and not counted."""
    return type(expression).__name__ == "TensorLoad" or any(map(_reads, _parts(expression)))


def _operator(expression: Any) -> str:
    """The name of what a call calls; empty of all else."""
    return str(getattr(expression.op, "name", "")) if type(expression).__name__ == "Call" else ""


def _parts(expression: Any) -> list[Any]:
    """The operands of an expression."""
    if type(expression).__name__ == "Call":
        return list(expression.args)
    names = ("condition", "true_value", "false_value", "a", "b", "value")
    found = [getattr(expression, name, None) for name in names]
    return [part for part in found if hasattr(part, "same_as")]
