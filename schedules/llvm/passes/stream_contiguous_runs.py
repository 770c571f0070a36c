"""Contiguous results staged in the first-level cache, then copied to the output in whole cache lines.

In channels_last the filters of a row of output positions are one contiguous run of memory. Where the filters fill no
whole vectors, vectors stored straight from the registers lie across cache lines, so that they cannot be stored past the
caches (:mod:`nontemporal_stores`). Copied from a strip of some positions, all lines but a run's first and last can.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.s_tir import SBlockRealize, Schedule

from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import llvm_functions, marks

#: Annotation of a loop over a run: elements of an output position, and whether whole lines are stored past the caches.
_RUN = "tvm_conv3d.run"

#: Note at that loop: how many of its elements are valid.
_LENGTH = "tvm_conv3d.length_of_run"


#: Bytes of a cache line, and of the vectors in which a run is copied.
_LINE = 64

_FUNCTION = """
declare void @llvm.masked.store.v{lanes}f{bits}.p0(<{lanes} x {type}>, ptr, i32, <{lanes} x i1>)
declare <{lanes} x {type}> @llvm.masked.load.v{lanes}f{bits}.p0(ptr, i32, <{lanes} x i1>, <{lanes} x {type}>)

define private void @{name}_part(ptr %to, ptr %from, i32 %count) alwaysinline nounwind {{
  %one = insertelement <{lanes} x i32> poison, i32 %count, i32 0
  %all = shufflevector <{lanes} x i32> %one, <{lanes} x i32> poison, <{lanes} x i32> zeroinitializer
  %mask = icmp slt <{lanes} x i32> <{numbers}>, %all
  %value = call <{lanes} x {type}> @llvm.masked.load.v{lanes}f{bits}.p0(
    ptr %from, i32 {element}, <{lanes} x i1> %mask, <{lanes} x {type}> zeroinitializer)
  call void @llvm.masked.store.v{lanes}f{bits}.p0(
    <{lanes} x {type}> %value, ptr %to, i32 {element}, <{lanes} x i1> %mask)
  ret void
}}

define void @{name}(ptr %to, ptr %from, i32 %count) alwaysinline nounwind {{
start:
  %address = ptrtoint ptr %to to i64
  %ahead = sub i64 0, %address
  %bytes = and i64 %ahead, {past}
  %elements = lshr i64 %bytes, {shift}
  %wide = trunc i64 %elements to i32
  %less = icmp slt i32 %count, %wide
  %head = select i1 %less, i32 %count, i32 %wide
  call void @{name}_part(ptr %to, ptr %from, i32 %head)
  br label %next
next:
  %at = phi i32 [ %head, %start ], [ %after, %line ]
  %after = add i32 %at, {lanes}
  %to_line = getelementptr {type}, ptr %to, i32 %at
  %from_line = getelementptr {type}, ptr %from, i32 %at
  %whole = icmp sle i32 %after, %count
  br i1 %whole, label %line, label %rest
line:
  %value = load <{lanes} x {type}>, ptr %from_line, align {element}
  store <{lanes} x {type}> %value, ptr %to_line, align {line}{hint}
  br label %next
rest:
  %left = sub i32 %count, %at
  call void @{name}_part(ptr %to_line, ptr %from_line, i32 %left)
  ret void
}}
!0 = !{{i32 1}}
"""


def mark(sch: Schedule, positions: LoopRV, *inner: LoopRV, past_caches: bool) -> None:
    """Marks the loops of a copy to the output, over output positions and all elements of one, as a run.

    Args:
        sch: the schedule.
        positions: the loop over output positions.
        inner: the loops over the elements of one.
        past_caches: whole lines are stored past the caches.
    """
    elements = math.prod(int(sch.get(loop).extent) for loop in inner)
    sch.annotate(sch.fuse(positions, *inner), _RUN, [elements, int(past_caches)])


@marks.function_pass("note_runs", _RUN)
def note(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function with a note beside each run of how many of its elements are valid.

    Runs end with a row: where a row's last strip is a tail, the predicate of its positions becomes a count of elements.
    """
    analyzer = sym.Analyzer()

    def noted(loop: tirx.For) -> Any:
        if _RUN not in loop.annotations:
            return loop
        realize = loop.body
        conditions = index_analysis.conjuncts(realize.predicate)
        bounds = [condition for condition in conditions if index_analysis.uses(condition, loop.loop_var)]
        others = index_analysis.all_of(
            [condition for condition in conditions if not any(map(condition.same_as, bounds))]
        )
        elements, past_caches = map(int, loop.annotations[_RUN])
        count = loop.extent
        for bound in bounds:
            left = analyzer.simplify(bound.b - index_analysis.put_all(bound.a, {loop.loop_var: 0}))
            count = tirx.min(count, left * elements)
        body = SBlockRealize(realize.iter_values, others, realize.block)
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding)
        return marks.note(_LENGTH, count, whole, past_caches)

    noted_body = tvm_ffi.structural_map(function.body, (tirx.For, noted))
    return marks.adding(function.with_body(noted_body), _LENGTH)


@marks.function_pass("copy_runs", _LENGTH)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function, lowered to vectors, with the copies of runs as calls, as :func:`note` noted."""
    used: dict[str, str] = {}

    def copied(note: tirx.AttrStmt) -> Any:
        if note.attr_key != _LENGTH:
            return note
        past_caches = bool(int(note.node))
        # a run of one element has no loop left
        loop = note.body
        at_start = index_analysis.put_all(loop.body, {loop.loop_var: 0}) if isinstance(loop, tirx.For) else loop
        return tvm_ffi.structural_map(at_start, (tirx.BufferStore, lambda store: copy(store, note.value, past_caches)))

    def copy(store: tirx.BufferStore, count: Any, past_caches: bool) -> Any:
        dtype = str(store.buffer.dtype)
        llvm_type, element = llvm_functions.TYPES[dtype]
        lanes = _LINE // element
        name = f"tvm_conv3d_copy_{dtype}{'_past' if past_caches else ''}"
        used[name] = _FUNCTION.format(
            name=name,
            type=llvm_type,
            element=element,
            bits=8 * element,
            lanes=lanes,
            numbers=", ".join(f"i32 {lane}" for lane in range(lanes)),
            line=_LINE,
            past=_LINE - 1,
            shift=element.bit_length() - 1,
            hint=", !nontemporal !0" if past_caches else "",
        )
        source = store.value
        return llvm_functions.call(
            name,
            llvm_functions.address(store.buffer, store.indices[0], "w"),
            llvm_functions.address(source.source, source.indices[0], "r"),
            tirx.Cast("int32", count),
        )

    return llvm_functions.with_functions(function, tvm_ffi.structural_map(function.body, (tirx.AttrStmt, copied)), used)
