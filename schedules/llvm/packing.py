"""How weights are packed on a CPU: tasks of some rows of the packed kernel, and rows by vectors where they can be.

Winograd's transforms are made for one channel and one vector of filters after the other, and go through the stack.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import PACK, PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.packing import DeclarePacking, module
from tvm_conv3d.compute.shared.winograd_packing import STAGES, TAPS
from tvm_conv3d.schedules.index_analysis import uses
from tvm_conv3d.schedules.llvm.common import BlockRV, LoopRV, place
from tvm_conv3d.schedules.packing import loops_by_name, transforms_of

#: Elements of a packed kernel from which on it is made by several threads.
_MIN_PARALLEL = 1 << 15

#: Elements that a task copies in two loops, at most.
_ROW = 256


def scheduled(spec: CanonicalSpec, variant: Any, declare_packing: DeclarePacking) -> IRModule:
    """The `pack` of :func:`tvm_conv3d.compute.shared.packing.module`, whose arguments may lie at any address."""
    sch = Schedule(module(spec, variant, declare_packing))
    sch.work_on(PACK)
    transforms = transforms_of(sch)
    if transforms:
        _transform(sch, transforms)
    else:
        _copy(sch)
    return sch.mod


def _copy(sch: Schedule) -> None:
    block = sch.get_sblock(PACKED_KERNEL)
    loops = sch.get_loops(block)
    if _is_even(sch, block):
        sch.vectorize(loops[-1])
    extents = [int(sch.get(loop).extent) for loop in loops]
    # short loops inside each other would all be unrolled, which takes LLVM longer than all else
    inner = 2 if math.prod(extents[-2:]) <= _ROW else 1
    _in_tasks(sch, loops[:-inner], math.prod(extents[-inner:]))


def _transform(sch: Schedule, transforms: list[str]) -> None:
    """The last transform is made where it is stored."""
    *before, last = transforms
    sch.compute_inline(sch.get_sblock(last))
    loops = loops_by_name(sch)
    *rows, lane = inner = [loops.pop(name) for name in ("d", "h", "w", "lane")]
    outer = list(loops.values())
    sch.reorder(*outer, *inner)
    stored = math.prod(int(sch.get(loop).extent) for loop in inner)
    _row_by_row(sch, last, rows, lane)
    task = _in_tasks(sch, outer, stored)
    for name in reversed(before):
        *rows, lane = sch.get_loops(place(sch, name, task))[-len(outer) - 4 :]
        _row_by_row(sch, name, rows[:3], lane)
    taps = place(sch, TAPS, task)
    if _is_even(sch, taps):
        sch.vectorize(sch.get_loops(taps)[-1])


def _row_by_row(sch: Schedule, transform: str, rows: list[LoopRV], lane: LoopRV) -> None:
    """Makes a row of the transform for all other axes, which are one loop that is too long to be unrolled."""
    row = rows.pop(STAGES.index(transform))
    sch.reorder(row, *rows)
    sch.fuse(*rows)
    sch.vectorize(lane)


def _in_tasks(sch: Schedule, loops: list[LoopRV], inner: int) -> LoopRV:
    """Makes `loops`, whose body stores `inner` elements, one loop of tasks, or of one thread where there is little."""
    count = math.prod(int(sch.get(loop).extent) for loop in loops)
    task = sch.fuse(*loops)
    if count * inner >= _MIN_PARALLEL:
        sch.parallel(task)
    return task


def _is_even(sch: Schedule, block: BlockRV) -> bool:
    """Whether what `block` stores is read along its last axis without conditions, and at even distances."""
    declared = sch.get(block)
    last = declared.iter_vars[-1].var
    found: list[bool] = []

    def note(division: tirx.FloorMod | tirx.FloorDiv) -> None:
        found.append(uses(division, last))

    def note_condition(call: ir.Call) -> None:
        found.append(call.op.name == "tirx.if_then_else" and uses(call.args[0], last))

    walked = ((ir.Call, note_condition), (tirx.FloorMod, note), (tirx.FloorDiv, note))
    tvm_ffi.structural_walk(declared.body, walked)
    return not any(found)
