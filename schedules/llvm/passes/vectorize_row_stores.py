"""Stores of a row by vectors, whatever its length.

A row's tail is stored under a mask where the CPU has masked stores and what is stored is padded to whole vectors, else
as a vector that overlaps the one before. A schedule marks the loop, and says how many elements are left for a row's
last task where tasks do not divide the row.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import llvm_functions, marks, mask_output_tail
from tvm_conv3d.target.cpu import CpuTraits, cpu_traits
from tvm_conv3d.target.description import Target

#: Annotations of a loop along a row: elements of the row's last part, and of the vectors that it is padded to.
ROWS, PADDED = "tvm_conv3d.last_of_row", "tvm_conv3d.padded_row"

#: Bits of a vector from which on CPUs have fast masked stores.
_MASKED_BITS = 512

#: Vectors of a row up to which their code is written out.
_FEW = 4


def mark(sch: Schedule, loop: LoopRV, length: int, padded: int = 0) -> None:
    """Marks a loop, the innermost, that stores a part of a row of `length` elements.

    Args:
        sch: the schedule.
        loop: the loop.
        length: elements of the row.
        padded: lanes of the vectors that what is stored fills, behind the row's end too; 0 where it ends with the row.
    """
    extent = int(sch.get(loop).extent)
    sch.annotate(loop, ROWS, length - (length - 1) // extent * extent)
    if padded:
        sch.annotate(loop, PADDED, padded)


@marks.function_pass("vectorize_row_stores", ROWS, PADDED)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function lowered to loops with marked stores by vectors, for the target in whose scope this runs."""
    traits = cpu_traits(Target.of_scope())

    def on_loop(loop: tirx.For) -> Any:
        return vectors(loop, traits) if ROWS in loop.annotations else loop

    found = function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, on_loop)))
    return marks.adding(found, mask_output_tail.VALID_LANES) if PADDED in marks.waiting(function) else found


def vectors(loop: tirx.For, traits: CpuTraits) -> Any:
    """Replaces a marked loop, not yet vectorized."""
    extent, last = int(loop.extent), int(loop.annotations[ROWS])
    body, bounds = loop.body, []
    if isinstance(body, tirx.IfThenElse):
        conditions = index_analysis.conjuncts(body.condition)
        bounds = [condition for condition in conditions if index_analysis.uses(condition, loop.loop_var)]
        others = [condition for condition in conditions if not index_analysis.uses(condition, loop.loop_var)]
        body = tirx.IfThenElse(tirx.all(*others), body.then_case, None) if others else body.then_case
    dtype = _stored_type(body)
    masked = PADDED in loop.annotations and traits.vector_bits >= _MASKED_BITS
    lanes = (
        int(loop.annotations[PADDED]) if masked else traits.lanes(dtype if dtype in llvm_functions.TYPES else "float32")
    )
    whole = _stores(loop.loop_var, body, extent, lanes, masked)
    if not bounds:
        return whole
    begins, inside = (
        tirx.all(*(index_analysis.put(condition, {loop.loop_var: element}) for condition in bounds))
        for element in (0, extent - 1)
    )
    # a task may also lie behind the row's end as a whole; TVM hoists an `if` out of an `else` over both branches
    part = _stores(loop.loop_var, body, last, lanes, masked)
    return tirx.SeqStmt(
        [tirx.IfThenElse(inside, whole, None), tirx.IfThenElse(tirx.all(begins, tirx.Not(inside)), part, None)]
    )


def _stores(var: Any, body: Any, extent: int, lanes: int, masked: bool) -> Any:
    size = lanes if masked else min(lanes, 1 << extent.bit_length() - 1)

    def vector(start: Any, part: int = 0) -> Any:
        if size == 1 or part == 1:
            return index_analysis.put_all(body, {var: start})
        lane = ir.Var("lane", "int32")
        store = tirx.For(lane, 0, size, tirx.ForKind.VECTORIZED, index_analysis.put_all(body, {var: start + lane}))
        return marks.note(mask_output_tail.VALID_LANES, tirx.const(part, "int32"), store) if part else store

    if masked:
        parts = [vector(start, extent - start if extent - start < size else 0) for start in range(0, extent, size)]
        return index_analysis.one_statement(parts)
    starts = [min(start, extent - size) for start in range(0, extent, size)]
    if len(starts) <= _FEW:
        return index_analysis.one_statement([vector(start) for start in starts])
    number = ir.Var("vector", "int32")
    return tirx.For(number, 0, len(starts), tirx.ForKind.SERIAL, vector(tirx.min(number * size, extent - size)))


def _stored_type(body: Any) -> str:
    found: list[tirx.BufferStore] = []
    tvm_ffi.structural_walk(body, (tirx.BufferStore, found.append))
    return str(found[0].buffer.dtype)
