"""Vectors that overhang a row of results: only those of their elements that exist are stored.

TVM stores a vector element by element where a condition holds for some of its lanes only. So that condition is taken
off the lanes and noted beside the store. Once lowered to vectors, a whole vector is stored as such, one that overhangs
under a mask.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, sym, tirx
from tvm.s_tir import SBlockRealize

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.compute.cut import STORE
from tvm_conv3d.schedules.llvm.rewrites import injected, loops, part_store

#: Attribute of a store: how many elements of its row are left from its first lane on.
_LEFT = "tvm_conv3d.elements_left"


def storable(spec: CanonicalSpec) -> bool:
    """Whether parts of vectors can be stored; half types are stored by way of the stack.

    So are results to which a residual operand is added: whole vectors of it would be read, beyond its end.
    """
    return spec.dtype in injected.TYPES and not spec.residual


def mark(module: IRModule) -> IRModule:
    """A scheduled function with a note beside each store of results in vectors of which only some lanes exist."""
    analyzer = sym.Analyzer()

    def bounded(loop: tirx.For) -> Any:
        realize = loop.body
        if loop.kind != tirx.ForKind.VECTORIZED or not isinstance(realize, SBlockRealize):
            return loop
        if realize.block.name_hint != STORE:
            return loop
        conditions = loops.conjuncts(realize.predicate)
        bounds = [condition for condition in conditions if loops.uses(condition, loop.loop_var)]
        if len(bounds) != 1 or not isinstance(bounds[0], tirx.LT):
            return loop
        left = analyzer.simplify(bounds[0].b - loops.put_all(bounds[0].a, {loop.loop_var: 0}))
        others = loops.all_of([condition for condition in conditions if not condition.same_as(bounds[0])])
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
        return part_store.first_elements(note.body, note.value, lambda store: _masked(store, note.value, used))

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, masked))
    return IRModule({"main": function.with_body(injected.with_functions(body, used.values()))})


def _masked(store: tirx.BufferStore, left: Any, used: dict[str, str]) -> Any:
    """`store` where at least a vector is left, else that of the elements that are."""
    lanes = int(store.indices[0].lanes)
    part = part_store.masked(store, int(sym.Analyzer().simplify(left % lanes)), used)
    return tirx.IfThenElse(left >= lanes, store, tirx.IfThenElse(left > 0, part, None))
