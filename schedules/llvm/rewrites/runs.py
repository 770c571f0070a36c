"""Results put together in the first-level cache and copied to the output in runs, whole cache lines of it at a time.

In channels_last a row of cells times all filters is one run of memory. Where the filters fill no whole vectors, those
stored straight from the registers lie across cache lines, so that they cannot be stored past the caches
(:mod:`stream_stores`). Copied from a strip of some cells, all but a run's first and last line can.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import IRModule, sym, tirx
from tvm.s_tir import SBlockRealize, Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.rewrites import injected, loops
from tvm_conv3d.schedules.llvm.rewrites.stream_stores import LEAST_BYTES, output_bytes
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.targets import CpuTraits

#: Annotation of a loop over a run: numbers of a cell. Attribute of that loop: how many of its numbers exist.
_RUN = "tvm_conv3d.run"

#: Share of the last cache from which on memory decides. Measured: 17 MB of 32 are better kept, 29 are not.
_SHARE_OF_CACHE = 0.75

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


def competes(spec: CanonicalSpec) -> bool:
    """Whether results of `spec` can be copied in runs, and are large enough for that to be tried."""
    return _stored_bytes(spec) >= LEAST_BYTES


def outgrows_caches(spec: CanonicalSpec, traits: CpuTraits) -> bool:
    """Whether so much is stored that the caches hold little of it at the end: runs are best stored past them.

    Less is stored as fast from the registers: even across its lines, a cache takes more than memory does.
    """
    return _stored_bytes(spec) >= _SHARE_OF_CACHE * traits.l3


def _stored_bytes(spec: CanonicalSpec) -> int:
    """Bytes of the output, none where it is not made of runs."""
    return output_bytes(spec) if spec.data_format == CHANNELS_LAST and not spec.phased else 0


def mark(sch: Schedule, cells: LoopRV, *inner: LoopRV) -> None:
    """Marks the loops of a copy to the output, over cells and all numbers of one cell, as a run."""
    numbers = math.prod(int(sch.get(loop).extent) for loop in inner)
    sch.annotate(sch.fuse(cells, *inner), _RUN, numbers)


def note(module: IRModule) -> IRModule:
    """A scheduled function with a note beside each run of how many elements of it exist.

    Runs end with a row: where a strip overhangs its row, the condition that cells exist is made a number of elements.
    """
    analyzer = sym.Analyzer()

    def noted(loop: tirx.For) -> Any:
        if _RUN not in loop.annotations:
            return loop
        realize = loop.body
        conditions = loops.conjuncts(realize.predicate)
        bounds = [condition for condition in conditions if loops.uses(condition, loop.loop_var)]
        others = loops.all_of([condition for condition in conditions if not any(map(condition.same_as, bounds))])
        count = loop.extent
        for bound in bounds:
            left = analyzer.simplify(bound.b - loops.put_all(bound.a, {loop.loop_var: 0}))
            count = tirx.min(count, left * loop.annotations[_RUN])
        body = SBlockRealize(realize.iter_values, others, realize.block)
        whole = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding)
        return tirx.AttrStmt(tirx.const(0, "int32"), _RUN, count, whole)

    function = module["main"]
    return IRModule({"main": function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, noted)))})


def marked(module: IRModule) -> bool:
    """Whether :func:`note` noted anything."""
    return injected.noted(module, _RUN)


def rewrite(module: IRModule, past_caches: bool) -> IRModule:
    """A function, lowered to vectors, with the copies of runs as calls.

    Args:
        module: with the notes of :func:`note`.
        past_caches: whole lines are stored past the caches.
    """
    used: dict[str, str] = {}

    def copied(note: tirx.AttrStmt) -> Any:
        if note.attr_key != _RUN:
            return note
        # a run of one number has no loop left
        loop = note.body
        at_start = loops.put_all(loop.body, {loop.loop_var: 0}) if isinstance(loop, tirx.For) else loop
        return tvm_ffi.structural_map(at_start, (tirx.BufferStore, lambda store: copy(store, note.value)))

    def copy(store: tirx.BufferStore, count: Any) -> Any:
        dtype = str(store.buffer.dtype)
        llvm_type, element = injected.TYPES[dtype]
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
        return injected.call(
            name,
            injected.address(store.buffer, store.indices[0], "w"),
            injected.address(source.source, source.indices[0], "r"),
            tirx.Cast("int32", count),
        )

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, copied))
    return IRModule({"main": function.with_body(injected.with_functions(body, used.values()))})
