"""Stores of a row by vectors, whatever its length: vectors overlap the one before where they do not divide it.

A schedule marks the loop, and says how many elements the last task has where tasks overhang the output.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm import loops

#: Annotation of a loop along a row: elements of the row's last part.
ROWS = "tvm_conv3d.last_of_row"

#: Vectors of a row up to which their code is written out.
_FEW = 4


def mark(sch: Schedule, loop: LoopRV, length: int) -> None:
    """Marks a loop, the innermost, that stores a part of a row of `length` elements."""
    extent = int(sch.get(loop).extent)
    sch.annotate(loop, ROWS, length - (length - 1) // extent * extent)


def vectors(loop: tirx.For, lanes: int) -> Any:
    """What does the work of a marked loop, not yet vectorized."""
    extent, last = int(loop.extent), int(loop.annotations[ROWS])
    body, overhangs = loop.body, []
    if isinstance(body, tirx.IfThenElse):
        conditions = loops.conjuncts(body.condition)
        overhangs = [condition for condition in conditions if loops.uses(condition, loop.loop_var)]
        others = [condition for condition in conditions if not loops.uses(condition, loop.loop_var)]
        body = tirx.IfThenElse(tirx.all(*others), body.then_case, None) if others else body.then_case
    whole = _stores(loop.loop_var, body, extent, lanes)
    if not overhangs:
        return whole
    inside = tirx.all(*(loops.put(condition, {loop.loop_var: extent - 1}) for condition in overhangs))
    return tirx.IfThenElse(inside, whole, _stores(loop.loop_var, body, last, lanes))


def _stores(var: Any, body: Any, extent: int, lanes: int) -> Any:
    size = min(lanes, 1 << extent.bit_length() - 1)
    starts = [min(start, extent - size) for start in range(0, extent, size)]

    def vector(start: Any) -> Any:
        if size == 1:
            return loops.put_all(body, {var: start})
        lane = ir.Var("lane", "int32")
        return tirx.For(lane, 0, size, tirx.ForKind.VECTORIZED, loops.put_all(body, {var: start + lane}))

    if len(starts) <= _FEW:
        parts = [vector(start) for start in starts]
        return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]
    number = ir.Var("vector", "int32")
    return tirx.For(number, 0, len(starts), tirx.ForKind.SERIAL, vector(tirx.min(number * size, extent - size)))
