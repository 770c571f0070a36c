"""Long sums in parts, as an accumulator that takes every term loses digits of each that is small beside it.

The loop in which a sum outgrows :func:`~tvm_conv3d.compute.shared.stages.terms_of_part` is split: the registers sum a
part, and are then added to the totals. This is done after scheduling: design spaces and short sums stay as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx.buffer import BufferType

from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import largest_divisor

Stmt = Any

#: (block that sets totals to zero, buffer of a part) -> block that adds the part to them.
Adding = Callable[[SBlock, Any], SBlock]

#: What the names of the blocks that add to them hold.
_UPDATE = "_update"

#: Name of the block that adds a part to the totals.
TOTAL = "total_of_parts"


class Summing(NamedTuple):
    """How sums are made: the terms that a block adds to one of them, and how a part is added to its total."""

    terms: int
    add: Adding


class _Cut(NamedTuple):
    """Where a reduction is cut: the loop, and trips of it that make a part at most."""

    loop: tirx.For
    trips: int


def add_elements(start: SBlock, part: Any) -> SBlock:
    """The block that adds elements of `part` to the totals, made from that which sets an element of these to zero."""
    store, (region,) = start.body, start.writes
    value = tirx.BufferLoad(store.buffer, store.indices) + tirx.BufferLoad(part, store.indices)
    body = tirx.BufferStore(store.buffer, value, store.indices)
    return SBlock(
        start.iter_vars, [region, index_analysis.put_all(region, {store.buffer: part})], [region], TOTAL, body
    )


#: By the names that TVM gives the blocks that set sums of products to zero, element by element.
_ELEMENTS = dict.fromkeys(("conv_init", "product_init", "direct_init"), Summing(1, add_elements))


def in_parts(
    module: IRModule, on_gpu: bool = False, instructions: Mapping[str, Summing] = MappingProxyType({})
) -> IRModule:
    """The scheduled `main` with its long sums in parts; the same where there are none.

    Args:
        module: scheduled.
        on_gpu: parts are as long as :func:`~tvm_conv3d.compute.shared.stages.terms_of_part` says of GPUs.
        instructions: how those sum that blocks became, by the name of the block that sets their sums to zero.
    """
    known = {**_ELEMENTS, **instructions}
    registers: list[Any] = []

    def on_sequence(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
        statements = list(sequence.seq)
        for number, (start, reduction) in enumerate(itertools.pairwise(statements)):
            block = _block_of(start)
            if block is None or block.name_hint not in known:
                continue
            summing = known[block.name_hint]
            cut = _cut(reduction, summing.terms, on_gpu)
            if cut is not None:
                total = block.writes[0].source
                part = tirx.decl_buffer(total.shape, total.dtype, f"{total.name}_part", scope=total.scope())
                registers.append(part)
                statements[number + 1] = _split(start, reduction, cut, (total, part), summing.add)
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
    nest, realize = _around(reduction)
    added = [
        value
        for axis, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
        if axis.iter_type == tirx.IterVar.CommReduce
    ]
    over = [loop for loop in nest if any(index_analysis.uses(value, loop.loop_var) for value in added)]
    most = terms_of_part(terms * math.prod(int(loop.extent) for loop in over), on_gpu)
    for loop in reversed(over):
        if terms * int(loop.extent) > most:
            return _Cut(loop, max(1, most // terms))
        terms *= int(loop.extent)
    return None


def _around(statement: Stmt) -> tuple[list[tirx.For], SBlockRealize]:
    """The loops around the block that adds products, the outermost first, and that block."""
    nest: list[tirx.For] = []
    while True:
        if isinstance(statement, tirx.For):
            nest.append(statement)
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
    return nest, statement


def _split(start: Stmt, reduction: Stmt, cut: _Cut, buffers: tuple[Any, Any], add: Adding) -> Stmt:
    """`reduction` with its loop cut: around each part of it, the part is set to zero, and added to the total.

    Args:
        start: sets the total to zero.
        reduction: the loops that add to it.
        cut: one of them.
        buffers: of the total and of a part.
        add: makes the block that adds the latter to the former.
    """
    total, part = buffers
    loop, extent = cut.loop, int(cut.loop.extent)
    dtype = str(loop.loop_var.ty.dtype)
    number, within = (ir.Var(f"{loop.loop_var.name}_{name}", dtype) for name in ("part", "of_part"))
    if loop.kind == tirx.ForKind.SERIAL and not loop.annotations:
        # parts alike, but for the last; what an annotation asks for may need a fixed extent
        size = -(-extent // -(-extent // cut.trips))
    else:
        size = largest_divisor(extent, cut.trips)
    trips = tirx.const(size, dtype) if extent % size == 0 else tirx.min(size, extent - number * size)
    zero, parts = tirx.const(0, dtype), tirx.const(-(-extent // size), dtype)
    body = index_analysis.put_all(loop.body, {total: part, loop.loop_var: number * size + within})
    inner = tirx.For(within, zero, trips, loop.kind, body, loop.thread_binding, loop.annotations)
    adding = tvm_ffi.structural_map(start, (SBlock, lambda block: add(block, part)))
    around = tirx.SeqStmt([_again(start, {total: part}), inner, _again(adding, {})])
    outer = tirx.For(number, zero, parts, tirx.ForKind.SERIAL, around)
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
        return next((value for one, value in known.items() if var.same_as(one)), var)

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


def _allocating(root: Stmt, buffers: list[Any]) -> Stmt:
    """The block around all with more buffers; TVM moves their allocation to where they are used."""
    if isinstance(root, tirx.AttrStmt):
        # the texts of functions that activations call
        return tirx.AttrStmt(root.node, root.attr_key, root.value, _allocating(root.body, buffers))
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
