"""Long sums in parts, as an accumulator that takes every term loses digits of each that is small beside it.

The loop in which a sum outgrows :func:`~tvm_conv3d.compute.stages.terms_of_part` is split: the registers sum a part,
and are then added to the totals. This is done after scheduling: design spaces and short sums stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, SBlockRealize

from tvm_conv3d.compute.stages import terms_of_part
from tvm_conv3d.schedules.decisions import largest_divisor

Stmt = Any

#: Blocks that sum the products of a convolution.
_SUMS = ("conv", "product")

#: What TVM appends to the name of a reduction for the block that sets sums to zero, and for that which adds to them.
_START, _UPDATE = "_init", "_update"


class _Cut(NamedTuple):
    """Where a reduction is cut: the loop, and trips of it that make a part at most."""

    loop: tirx.For
    trips: int


def in_parts(module: IRModule) -> IRModule:
    """The scheduled `main` with its long sums in parts; the same where there are none."""
    registers: list[Any] = []

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
        statements = list(sequence.seq)
        for number, start in enumerate(statements[:-1]):
            block = _block_of(start)
            if block is None or block.name_hint not in [name + _START for name in _SUMS]:
                continue
            cut = _cut(statements[number + 1])
            if cut is not None:
                total = block.body.buffer
                registers.append(tirx.decl_buffer(total.shape, total.dtype, f"{total.name}_part", scope=total.scope()))
                statements[number + 1] = _split(start, statements[number + 1], cut, total, registers[-1])
        return tirx.SeqStmt(statements)

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence))
    return IRModule({"main": function.with_body(_allocating(body, registers))}) if registers else module


def _block_of(statement: Stmt) -> SBlock | None:
    """The block in a nest of loops; None where there is more than loops."""
    while isinstance(statement, tirx.For):
        statement = statement.body
    return statement.block if isinstance(statement, SBlockRealize) else None


def _cut(reduction: Stmt) -> _Cut | None:
    """The loop in which sums get too long; None where they are short."""
    loops, realize = _around(reduction)
    added = [
        value
        for axis, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
        if axis.iter_type == tirx.IterVar.CommReduce
    ]
    over = [loop for loop in loops if any(_uses(value, loop.loop_var) for value in added)]
    most = terms_of_part(math.prod(int(loop.extent) for loop in over))
    terms = 1
    for loop in reversed(over):
        if terms * int(loop.extent) > most:
            return _Cut(loop, max(1, most // terms))
        terms *= int(loop.extent)
    return None


def _around(statement: Stmt) -> tuple[list[tirx.For], SBlockRealize]:
    """The loops around the block that adds products, the outermost first, and that block."""
    loops: list[tirx.For] = []
    while True:
        if isinstance(statement, tirx.For):
            loops.append(statement)
            statement = statement.body
        elif isinstance(statement, tirx.IfThenElse):
            statement = statement.then_case
        elif isinstance(statement, tirx.SeqStmt):
            # what is brought for the products, then the products
            statement = statement.seq[-1]
        else:
            break
    if not isinstance(statement, SBlockRealize) or not statement.block.name_hint.endswith(_UPDATE):
        raise RuntimeError(f"Products were expected in the last place of each loop. Received: {statement}")
    return loops, statement


def _split(start: Stmt, reduction: Stmt, cut: _Cut, total: Any, part: Any) -> Stmt:
    """`reduction` with one of its loops split, around which `part` is cleared and added to `total`."""
    loop, extent = cut.loop, int(cut.loop.extent)
    dtype = str(loop.loop_var.ty.dtype)
    number, within = (ir.Var(f"{loop.loop_var.name}_{name}", dtype) for name in ("part", "of_part"))
    if loop.kind == tirx.ForKind.SERIAL:
        # parts alike, but for the last
        size = -(-extent // -(-extent // cut.trips))
    else:
        size = largest_divisor(extent, cut.trips)
    trips = tirx.const(size, dtype) if extent % size == 0 else tirx.min(size, extent - number * size)
    body = _replaced(loop.body, {loop.loop_var: number * size + within, total: part})
    inner = tirx.For(within, tirx.const(0, dtype), trips, loop.kind, body, loop.thread_binding, loop.annotations)
    parts = [_again(start, {total: part}), inner, _again(_adding(start, part), {})]
    outer = tirx.For(
        number, tirx.const(0, dtype), tirx.const(-(-extent // size), dtype), tirx.ForKind.SERIAL, tirx.SeqStmt(parts)
    )
    return tvm_ffi.structural_map(reduction, (tirx.For, lambda other: outer if other.same_as(loop) else other))


def _adding(start: Stmt, part: Any) -> Stmt:
    """The block in `start`, which sets totals to zero, as one that adds a part to them."""

    def added(block: SBlock) -> SBlock:
        store, (region,) = block.body, block.writes
        of_part = _replaced(region, {store.buffer: part})
        value = tirx.BufferLoad(store.buffer, store.indices) + tirx.BufferLoad(part, store.indices)
        name = block.name_hint.removesuffix(_START) + "_total"
        body = tirx.BufferStore(store.buffer, value, store.indices)
        return SBlock(block.iter_vars, [region, of_part], [region], name, body)

    return tvm_ffi.structural_map(start, (SBlock, added))


def _again(statement: Stmt, values: Mapping[Any, Any]) -> Stmt:
    """A copy with variables of its own and, for those from outside, other values."""
    known = dict(values)

    def fresh(var: ir.Var, kind: Any) -> Any:
        if kind != tvm_ffi.DefRegionKind.NONE:
            known[var] = ir.Var(var.name, str(var.ty.dtype))
        return _value(var, known)

    return tvm_ffi.structural_map(statement, with_def_region_kind=(ir.Var, fresh))


def _replaced(statement: Stmt, values: Mapping[Any, Any]) -> Stmt:
    return tvm_ffi.structural_map(statement, (ir.Var, lambda var: _value(var, values)))


def _value(var: ir.Var, values: Mapping[Any, Any]) -> Any:
    return next((value for known, value in values.items() if var.same_as(known)), var)


def _uses(expression: Any, var: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (ir.Var, lambda other: found.append(other) if other.same_as(var) else None))
    return bool(found)


def _allocating(root: SBlockRealize, buffers: list[Any]) -> SBlockRealize:
    """The block around all with more buffers; TVM moves their allocation to where they are used."""
    block = root.block
    more = SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        block.body,
        block.init,
        [*block.alloc_buffers, *buffers],
        block.match_buffers,
        block.annotations,
    )
    return SBlockRealize(root.iter_values, root.predicate, more)
