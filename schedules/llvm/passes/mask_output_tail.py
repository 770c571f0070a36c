"""Masked stores of tails: of the last vector of a row of results, only the valid lanes are stored.

TVM stores a vector element by element where a predicate holds for some of its lanes only. So that predicate is taken
off the lanes and noted beside the store. Once lowered to vectors, a whole vector is stored as such, a tail under a
mask.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.s_tir import SBlockRealize, Schedule

from tvm_conv3d.compute.shared.tiled_output import STORE
from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.llvm.passes import marks

#: Mark of a function whose last vectors of rows may be tails.
_TAILS = "tvm_conv3d.stores_tails"

#: Note at the store of a vector: valid elements of its row from its first lane on.
VALID_LANES = "tvm_conv3d.valid_lanes"


def mark(sch: Schedule) -> None:
    """Marks a function whose last vectors of rows may be tails."""
    marks.on_output(sch, _TAILS)


@marks.function_pass("note_output_tails", _TAILS)
def note(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function with a note beside each store of results in vectors of which only some lanes are valid."""
    noted: list[tirx.AttrStmt] = []
    analyzer = sym.Analyzer()

    def bounded(loop: tirx.For) -> Any:
        realize = loop.body
        if loop.kind != tirx.ForKind.VECTORIZED or not isinstance(realize, SBlockRealize):
            return loop
        if realize.block.name_hint != STORE:
            return loop
        conditions = index_analysis.conjuncts(realize.predicate)
        bounds = [condition for condition in conditions if index_analysis.uses(condition, loop.loop_var)]
        if len(bounds) != 1 or not isinstance(bounds[0], tirx.LT):
            return loop
        left = analyzer.simplify(bounds[0].b - index_analysis.put_all(bounds[0].a, {loop.loop_var: 0}))
        others = index_analysis.all_of([condition for condition in conditions if not condition.same_as(bounds[0])])
        body = SBlockRealize(realize.iter_values, others, realize.block)
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)
        noted.append(marks.note(VALID_LANES, left, whole))
        return noted[-1]

    found = function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, bounded)))
    return marks.adding(found, VALID_LANES) if noted else function


@marks.function_pass("mask_output_tails", VALID_LANES)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function, lowered to vectors, with masked stores of the valid lanes that notes tell."""

    def masked(note: tirx.AttrStmt) -> Any:
        return _first_elements(note.body, note.value) if note.attr_key == VALID_LANES else note

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.AttrStmt, masked)))


def _first_elements(statement: Any, left: Any) -> Any:
    """`statement`, which stores along a vectorized loop, for the valid lanes.

    TVM takes the lanes one by one where an activation calls a function that has no vector form: then their loop ends
    earlier.
    """
    found: list[tirx.For] = []
    tvm_ffi.structural_walk(statement, (tirx.For, found.append))

    def shortened(loop: tirx.For) -> tirx.For:
        extent = tirx.min(loop.extent, tirx.max(left, tirx.const(0, str(loop.extent.ty.dtype))))
        return tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, loop.thread_binding, loop.annotations)

    def of_vector(store: tirx.BufferStore) -> Any:
        return _masked(store, left)

    return tvm_ffi.structural_map(statement, (tirx.For, shortened) if found else (tirx.BufferStore, of_vector))


def _masked(store: tirx.BufferStore, left: Any) -> Any:
    """`store` where all lanes are valid, else a masked store of those that are."""
    (place,), lanes = store.indices, int(store.indices[0].lanes)
    # a constant, so that the mask is one, too; of 32 bits, as TVM takes no others
    count = int(sym.Analyzer().simplify(left % lanes))
    mask = tirx.op.get_active_lane_mask(f"uint1x{lanes}", tirx.const(0, "int32"), tirx.const(count, "int32"))
    part = tirx.Evaluate(tirx.op.masked_store(store.buffer, store.value, place, mask))
    if isinstance(left, tirx.IntImm):
        return part
    return tirx.IfThenElse(left >= lanes, store, tirx.IfThenElse(left > 0, part, None))
