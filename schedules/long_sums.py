"""Long sums in parts, as an accumulator that takes every term loses digits of each that is small beside it.

The loop in which a sum outgrows :func:`~tvm_conv3d.compute.stages.terms_of_part` is split: the registers sum a part,
and are then added to the totals. This is done after scheduling: design spaces and short sums stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx.buffer import BufferType

from tvm_conv3d.compute.stages import terms_of_part
from tvm_conv3d.schedules.decisions import largest_divisor

Stmt = Any

#: Blocks that set sums of products to zero: as TVM names them, those that became an instruction, too.
_STARTS = ("conv_init", "product_init", "product_init_o", "direct_init")

#: What the names of the blocks that add to them hold.
_UPDATE = "_update"


#: Name of the block that adds a part to the totals.
TOTAL = "total_of_parts"


class _Cut(NamedTuple):
    """Where a reduction is cut: the loop, and trips of it that make a part at most."""

    loop: tirx.For
    trips: int


def add(start: SBlock, part: Any) -> SBlock:
    """The block that adds `part` to the totals, made from that which sets an element of them to zero."""
    store, (region,) = start.body, start.writes
    value = tirx.BufferLoad(store.buffer, store.indices) + tirx.BufferLoad(part, store.indices)
    body = tirx.BufferStore(store.buffer, value, store.indices)
    return SBlock(start.iter_vars, [region, replaced(region, {store.buffer: part})], [region], TOTAL, body)


def in_parts(
    module: IRModule,
    on_gpu: bool = False,
    terms: int = 1,
    add: Callable[[SBlock, Any], SBlock] = add,
) -> IRModule:
    """The scheduled `main` with its long sums in parts; the same where there are none.

    Args:
        module: scheduled.
        on_gpu: parts are as long as :func:`~tvm_conv3d.compute.stages.terms_of_part` says of GPUs.
        terms: that a block adds to a sum, where it is an instruction.
        add: makes the block that adds a part to the totals, as :func:`add` does.
    """
    registers: list[Any] = []

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
        statements = list(sequence.seq)
        for number, start in enumerate(statements[:-1]):
            block = _block_of(start)
            if block is None or block.name_hint not in _STARTS:
                continue
            cut = _cut(statements[number + 1], terms, on_gpu)
            if cut is not None:
                total = block.writes[0].source
                registers.append(tirx.decl_buffer(total.shape, total.dtype, f"{total.name}_part", scope=total.scope()))
                adding = tvm_ffi.structural_map(start, (SBlock, lambda block: add(block, registers[-1])))
                clearing = _again(start, {total: registers[-1]})
                inner = replaced(cut.loop.body, {total: registers[-1]})
                statements[number + 1] = _split(statements[number + 1], cut, clearing, inner, _again(adding, {}))
        return tirx.SeqStmt(statements)

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.SeqStmt, on_sequence))
    return IRModule({"main": function.with_body(_allocating(body, registers))}) if registers else module


def _block_of(statement: Stmt) -> SBlock | None:
    """The block in a nest of loops; None where there is more than loops."""
    while isinstance(statement, tirx.For):
        statement = statement.body
    return statement.block if isinstance(statement, SBlockRealize) else None


def _cut(reduction: Stmt, terms: int, on_gpu: bool) -> _Cut | None:
    """The loop in which sums get too long; None where they are short."""
    loops, realize = _around(reduction)
    added = [
        value
        for axis, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
        if axis.iter_type == tirx.IterVar.CommReduce
    ]
    over = [loop for loop in loops if any(_uses(value, loop.loop_var) for value in added)]
    most = terms_of_part(terms * math.prod(int(loop.extent) for loop in over), on_gpu)
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
    if not isinstance(statement, SBlockRealize) or _UPDATE not in statement.block.name_hint:
        raise RuntimeError(f"Products were expected in the last place of each loop. Received: {statement}")
    return loops, statement


def _split(reduction: Stmt, cut: _Cut, clearing: Stmt, body: Stmt, adding: Stmt) -> Stmt:
    """`reduction` with its loop cut: around each part of it the sums are cleared, and added to the totals."""
    loop, extent = cut.loop, int(cut.loop.extent)
    dtype = str(loop.loop_var.ty.dtype)
    number, within = (ir.Var(f"{loop.loop_var.name}_{name}", dtype) for name in ("part", "of_part"))
    if loop.kind == tirx.ForKind.SERIAL:
        # parts alike, but for the last
        size = -(-extent // -(-extent // cut.trips))
    else:
        size = largest_divisor(extent, cut.trips)
    trips = tirx.const(size, dtype) if extent % size == 0 else tirx.min(size, extent - number * size)
    zero, parts = tirx.const(0, dtype), tirx.const(-(-extent // size), dtype)
    body = replaced(body, {loop.loop_var: number * size + within})
    inner = tirx.For(within, zero, trips, loop.kind, body, loop.thread_binding, loop.annotations)
    outer = tirx.For(number, zero, parts, tirx.ForKind.SERIAL, tirx.SeqStmt([clearing, inner, adding]))
    return tvm_ffi.structural_map(reduction, (tirx.For, lambda other: outer if other.same_as(loop) else other))


def _again(statement: Stmt, values: Mapping[Any, Any]) -> Stmt:
    """A copy with variables of its own and, for those from outside, other values."""
    known = dict(values)

    def fresh(var: ir.Var, kind: Any) -> Any:
        if kind != tvm_ffi.DefRegionKind.NONE:
            if isinstance(var.ty, BufferType):
                known.update(alike(var))
            else:
                known[var] = ir.Var(var.name, str(var.ty.dtype))
        return _value(var, known)

    return tvm_ffi.structural_map(statement, with_def_region_kind=(ir.Var, fresh))


def alike(region: Any) -> dict[Any, Any]:
    """For the buffer that a block names a region by, and for its strides and its offset, new ones."""
    symbols = {name: ir.Var(name.name, str(name.ty.dtype)) for name in (*region.strides, region.elem_offset)}
    buffer = tirx.decl_buffer(
        region.shape,
        region.dtype,
        region.name,
        strides=[symbols[stride] for stride in region.strides],
        elem_offset=symbols[region.elem_offset],
        scope=region.scope(),
        data_alignment=region.data_alignment,
        offset_factor=region.offset_factor,
    )
    return {region: buffer, **symbols}


def replaced(statement: Any, values: Mapping[Any, Any]) -> Any:
    """A statement or expression with others in place of some of its variables and buffers."""
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
