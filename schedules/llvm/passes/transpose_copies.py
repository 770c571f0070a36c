"""Copies between layouts with channels innermost and with columns innermost, transposed in registers.

A schedule marks the loops of such a copy; they become calls of the functions of :mod:`transpose_function` on vectors
along the memory that is read. Where the extents do not divide into vectors, the last one overlaps the one before: what
both hold is copied twice. Zero padding along the row that is read is a matter of the load
(:mod:`masked_load_function`).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import marks
from tvm_conv3d.schedules.llvm.passes.llvm_functions import address, with_calls
from tvm_conv3d.schedules.llvm.passes.masked_load_function import can_load, load_function
from tvm_conv3d.schedules.llvm.passes.transpose_function import transpose_function
from tvm_conv3d.target.cpu import CpuTraits

#: Annotation of the outer of two loops: `inner` steps along the memory that is read, `outer` along what is written.
TRANSPOSES = "tvm_conv3d.transposes"

#: Annotation of a loop that copies a row, from and to neighbouring places.
COPIES = "tvm_conv3d.copies_row"

#: Blocks along the written memory up to which their code is written out.
_FEW = 4

#: Elements between those of a row that are loaded by vectors, at most.
_LARGEST_STRIDE = 4


def mark(sch: Schedule, outer: LoopRV, inner: LoopRV) -> None:
    """Marks two neighbouring loops that copy from where `inner` steps along the memory to where `outer` does."""
    sch.reorder(outer, inner)
    sch.annotate(outer, TRANSPOSES, 1)


def mark_copy(sch: Schedule, row: LoopRV) -> None:
    """Marks a loop that copies a row, maybe every second or third element of one."""
    sch.annotate(row, COPIES, 1)


@marks.function_pass("transpose_copies", TRANSPOSES, COPIES)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function lowered to loops, with marked copies as calls, for the target in whose scope this runs."""
    return with_calls(function, (TRANSPOSES, COPIES), calls)


def calls(loop: tirx.For, traits: CpuTraits, texts: dict[str, str], position: int = 1) -> Any:
    """Replaces a marked loop; the functions that it calls are added to `texts`.

    Args:
        loop: the loop.
        traits: the CPU.
        texts: name -> text of functions.
        position: elements of the row that are within its bounds together.
    """
    copies_row = COPIES in loop.annotations
    # a row is a matrix of one
    copy = _Copy.of(tirx.For(ir.Var("row", "int32"), 0, 1, tirx.ForKind.SERIAL, loop) if copies_row else loop)
    if copy is None:
        return marks.without(loop, TRANSPOSES, COPIES)
    return _Calls(copy, traits.lanes(copy.accumulator), texts, position).statement()


@dataclass(frozen=True)
class _Copy:
    """Two nested loops that copy elements, from a row or zero where `conditions` do not hold."""

    outer: tirx.For
    inner: tirx.For
    store: tirx.BufferStore
    load: Any
    conditions: list[Any]
    stride: int

    @classmethod
    def of(cls, outer: tirx.For) -> _Copy | None:
        """The copy that a loop makes; None where its memory does not lie as it should."""
        inner = outer.body
        if not isinstance(inner, tirx.For) or not isinstance(inner.body, tirx.BufferStore):
            return None
        store = inner.body
        value, conditions = store.value, []
        if isinstance(value, ir.Call) and value.op.name == "prim.if_then_else":
            value, conditions = value.args[1], index_analysis.conjuncts(value.args[0])
        found: list[Any] = []
        tvm_ffi.structural_walk(value, (ir.TensorLoad, found.append))
        accumulator = str(store.buffer.dtype)
        if len(found) != 1 or not can_load(str(found[0].source.dtype), accumulator):
            return None
        start = {outer.loop_var: 0, inner.loop_var: 0}
        place, source = store.indices[0], found[0].indices[0]
        stride = index_analysis.step(source, inner.loop_var, start)
        along = outer if int(outer.extent) > 1 else inner
        if (
            index_analysis.step(place, along.loop_var, start) != 1
            or stride is None
            or not 1 <= stride <= _LARGEST_STRIDE
        ):
            return None
        return cls(outer, inner, store, found[0], conditions, stride)

    @property
    def accumulator(self) -> str:
        return str(self.store.buffer.dtype)

    def at(self, expression: Any, row: Any, column: Any) -> Any:
        """`expression` in the given step of both loops."""
        return index_analysis.put(expression, {self.outer.loop_var: row, self.inner.loop_var: column})


class _Calls:
    """Calls that do a copy, block by block."""

    def __init__(self, copy: _Copy, lanes: int, texts: dict[str, str], position: int) -> None:
        self.copy, self.texts = copy, texts
        self.extents = int(copy.outer.extent), int(copy.inner.extent)
        self.rows, self.columns = (_vector(extent, lanes) for extent in self.extents)
        self.pitch = index_analysis.step(copy.store.indices[0], copy.inner.loop_var, {copy.outer.loop_var: 0})
        of_column = [c for c in copy.conditions if index_analysis.uses(c, copy.inner.loop_var)]
        others = [c for c in copy.conditions if not index_analysis.uses(c, copy.inner.loop_var)]
        self.bounds = index_analysis.bounds(of_column, copy.inner.loop_var, copy.stride, position)
        self.of_row = [c for c in others if index_analysis.uses(c, copy.outer.loop_var)]
        self.of_all = [c for c in others if not index_analysis.uses(c, copy.outer.loop_var)]

    def statement(self) -> Any:
        loops_around: list[tuple[Any, int]] = []
        starts: list[list[Any]] = []
        for name, extent, size in zip(("rows", "columns"), self.extents, (self.rows, self.columns), strict=True):
            count = -(-extent // size)
            if count <= _FEW:
                starts.append([min(number * size, extent - size) for number in range(count)])
            else:
                number = ir.Var(name, "int32")
                loops_around.append((number, count))
                starts.append([tirx.min(number * size, extent - size)])
        body = self._under_condition([(row, column) for row, column in itertools.product(*starts)])
        for number, count in reversed(loops_around):
            body = tirx.For(number, 0, count, tirx.ForKind.SERIAL, body)
        return body

    def _under_condition(self, blocks: list[tuple[Any, Any]]) -> Any:
        copied = index_analysis.one_statement([self._block(row, column) for row, column in blocks])
        if not self.of_all:
            return copied
        zero = tirx.Broadcast(tirx.const(0, self.copy.accumulator), self.columns)
        zeros = index_analysis.one_statement(
            [self._transpose([zero] * self.rows, row, column) for row, column in blocks]
        )
        return tirx.IfThenElse(tirx.all(*self.of_all), copied, zeros)

    def _block(self, row: Any, column: Any) -> Any:
        """One block: without looking at bounds where it lies within them."""
        whole = self._transpose([self._load(row + i, column) for i in range(self.rows)], row, column)
        reached = self.copy.stride * self.columns
        first, end = self._shifted(self.bounds.first, row, column), self._shifted(self.bounds.end, row, column)
        same = not self.of_row and not any(
            index_analysis.uses(bound, self.copy.outer.loop_var) for bound in (*self.bounds.first, *self.bounds.end)
        )
        inside = [bound <= 0 for bound in first] + [bound >= reached for bound in end]
        # behind the last element of a strided row may lie the end of the memory
        if same and not inside and self.copy.stride == 1:
            return whole
        vectors = [self._load(row + i, column, *self._limits(row + i, column)) for i in range(self.rows)]
        padded = self._transpose(vectors, row, column)
        if not same or (not end and self.copy.stride > 1):
            return padded
        return tirx.IfThenElse(tirx.all(*inside), whole, padded)

    def _limits(self, row: Any, column: Any) -> tuple[Any, Any]:
        """From and up to which element a vector of a row may be read."""
        first, end = self._shifted(self.bounds.first, row, column), self._shifted(self.bounds.end, row, column)
        span = self.copy.stride * (self.columns - 1) + 1
        low = functools.reduce(tirx.max, [_short(bound, span) for bound in first], tirx.const(0, "int32"))
        high = functools.reduce(tirx.min, [_short(bound, span) for bound in end], tirx.const(span, "int32"))
        if not self.of_row:
            return low, high
        valid = tirx.all(*(self.copy.at(condition, row, column) for condition in self.of_row))
        return low, tirx.Select(valid, high, tirx.const(0, "int32"))

    def _shifted(self, side: list[Any], row: Any, column: Any) -> list[Any]:
        """Bounds counted from the vector at `column`."""
        return [index_analysis.put(self.copy.at(bound, row, 0) - column * self.copy.stride, {}) for bound in side]

    def _load(self, row: Any, column: Any, *bounds: Any) -> Any:
        source = self.copy.load
        name, text = load_function(
            str(source.source.dtype), self.copy.accumulator, self.columns, self.copy.stride, bool(bounds)
        )
        self.texts[name] = text
        place = address(source.source, self.copy.at(source.indices[0], row, column), "r")
        return tirx.call_extern(f"{self.copy.accumulator}x{self.columns}", name, place, *bounds)

    def _transpose(self, vectors: list[Any], row: Any, column: Any) -> Any:
        if self.rows == self.pitch == 1 < self.columns:
            return self._store(vectors[0], row, column)
        name, text = transpose_function(self.copy.accumulator, self.rows, self.columns)
        self.texts[name] = text
        to = address(self.copy.store.buffer, self.copy.at(self.copy.store.indices[0], row, column), "w")
        return tirx.Evaluate(tirx.call_extern("void", name, *vectors, to, tirx.const(self.pitch, "int64")))

    def _store(self, vector: Any, row: Any, column: Any) -> Any:
        place = self.copy.at(self.copy.store.indices[0], row, column)
        places = tirx.Ramp(place, tirx.const(1, place.ty.dtype), self.columns)
        return tirx.BufferStore(self.copy.store.buffer, vector, [places])


def _short(bound: Any, span: int) -> Any:
    """A bound in 32 bits, which the functions take; it counts from 0 up to `span` only."""
    dtype = str(bound.ty.dtype)
    if dtype == "int32":
        return bound
    zero, most = tirx.const(0, dtype), tirx.const(span, dtype)
    return tirx.Cast("int32", tirx.max(zero, tirx.min(bound, most)))


def _vector(extent: int, lanes: int) -> int:
    """The largest power of two that neither exceeds the extent nor a register."""
    return 1 << min(extent, lanes).bit_length() - 1
