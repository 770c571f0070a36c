"""Vectors that overhang a row of results: only those of their elements that exist are stored.

TVM stores a vector element by element where a condition holds for some of its lanes only. So that condition is taken
off the lanes and noted beside the store. Once lowered to vectors, a whole vector is stored as such, one that overhangs
under a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tvm_ffi
from tvm import IRModule, sym, tirx
from tvm.s_tir import SBlockRealize

from tvm_conv3d.compute.cut import STORE
from tvm_conv3d.schedules.llvm import injected
from tvm_conv3d.spec import Conv3DSpec

#: Attribute of a store: how many elements of its row are left from its first lane on.
_LEFT = "tvm_conv3d.elements_left"

_FUNCTION = """
declare void @llvm.masked.store.v{lanes}f{bits}.p0(<{lanes} x {type}>, ptr, i32, <{lanes} x i1>)
define void @{name}(ptr %place, <{lanes} x {type}> %value) alwaysinline nounwind {{
  call void @llvm.masked.store.v{lanes}f{bits}.p0(
    <{lanes} x {type}> %value, ptr %place, i32 {element}, <{lanes} x i1> <{mask}>)
  ret void
}}
"""


def storable(spec: Conv3DSpec) -> bool:
    """Whether parts of vectors can be stored; half types are stored by way of the stack."""
    return spec.dtype in injected.TYPES


def mark(module: IRModule) -> IRModule:
    """A scheduled function with a note beside each store of results in vectors of which only some lanes exist."""
    analyzer = sym.Analyzer()

    def bounded(loop: tirx.For) -> Any:
        realize = loop.body
        if loop.kind != tirx.ForKind.VECTORIZED or not isinstance(realize, SBlockRealize):
            return loop
        if realize.block.name_hint != STORE:
            return loop
        conditions = list(conjuncts(realize.predicate))
        bounds = [condition for condition in conditions if injected.depends_on(condition, loop.loop_var)]
        if len(bounds) != 1 or not isinstance(bounds[0], tirx.LT):
            return loop
        left = analyzer.simplify(bounds[0].b - injected.first(bounds[0].a, loop.loop_var))
        others = all_of([condition for condition in conditions if not condition.same_as(bounds[0])])
        body = SBlockRealize(realize.iter_values, others, realize.block)
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)
        return tirx.AttrStmt(tirx.const(0, "int32"), _LEFT, left, whole)

    function = module["main"]
    return IRModule({"main": function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, bounded)))})


def marked(module: IRModule) -> bool:
    """Whether :func:`mark` noted anything."""
    return injected.noted(module, _LEFT)


def rewrite(module: IRModule) -> IRModule:
    """A function, lowered to vectors, with what :func:`mark` noted made into masked stores."""
    used: dict[str, str] = {}

    def masked(note: tirx.AttrStmt) -> Any:
        if note.attr_key != _LEFT:
            return note
        loops: list[tirx.For] = []
        tvm_ffi.structural_walk(note.body, (tirx.For, loops.append))
        if loops:
            return tvm_ffi.structural_map(note.body, (tirx.For, lambda loop: _shortened(loop, note.value)))
        return tvm_ffi.structural_map(note.body, (tirx.BufferStore, lambda store: _masked(store, note.value, used)))

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, masked))
    return IRModule({"main": function.with_body(injected.with_functions(body, used.values()))})


def _shortened(loop: tirx.For, left: Any) -> tirx.For:
    """`loop`, over elements of which as many as are left are stored.

    TVM takes the lanes one by one where an activation calls a function that has no vector form.
    """
    extent = tirx.min(loop.extent, tirx.max(left, tirx.const(0, str(loop.extent.ty.dtype))))
    return tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, loop.thread_binding, loop.annotations)


def _masked(store: tirx.BufferStore, left: Any, used: dict[str, str]) -> Any:
    """`store` where at least a vector is left, else that of the elements that are."""
    index, dtype = store.indices[0], str(store.buffer.dtype)
    lanes = int(index.lanes)
    rest = int(sym.Analyzer().simplify(left % lanes))
    llvm_type, element = injected.TYPES[dtype]
    name = f"tvm_conv3d_store_{dtype}x{lanes}_{rest}"
    mask = ", ".join(f"i1 {int(lane < rest)}" for lane in range(lanes))
    used[name] = _FUNCTION.format(name=name, lanes=lanes, type=llvm_type, bits=8 * element, mask=mask, element=element)
    part = injected.call(name, injected.address(store.buffer, index.base, "w"), store.value)
    return tirx.IfThenElse(left >= lanes, store, tirx.IfThenElse(left > 0, part, None))


def conjuncts(condition: Any) -> Iterator[Any]:
    """The conditions that must all hold for `condition` to hold."""
    if isinstance(condition, tirx.And):
        yield from conjuncts(condition.a)
        yield from conjuncts(condition.b)
    else:
        yield condition


def all_of(conditions: list[Any]) -> Any:
    return tirx.all(*conditions) if conditions else tirx.const(True, "bool")
