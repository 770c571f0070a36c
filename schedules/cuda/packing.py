"""How weights are packed on a GPU: a thread for each element, or for all frequencies of a weight."""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import PACK, PACKED_BIAS
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.packing import DeclarePacking, module
from tvm_conv3d.compute.shared.winograd_packing import STAGES, TAPS
from tvm_conv3d.schedules.cuda.common import LoopRV
from tvm_conv3d.schedules.packing import loops_by_name, transforms_of

#: Threads of a block.
_THREADS = 128


def scheduled(spec: CanonicalSpec, variant: Any, declare_packing: DeclarePacking) -> IRModule:
    """The function `pack` of :func:`tvm_conv3d.compute.shared.packing.module`: a kernel each for weights and bias."""
    sch = Schedule(module(spec, variant, declare_packing, aligned=True))
    sch.work_on(PACK)
    _spread(sch, sch.get_loops(sch.get_sblock(PACKED_BIAS)))
    transforms = transforms_of(sch)
    loops = loops_by_name(sch)
    if not transforms:
        _spread(sch, list(loops.values()))
        return sch.mod
    number = loops.pop("number")
    sch.reorder(*loops.values(), number)
    thread = _spread(sch, list(loops.values()))
    for name in (*reversed(transforms), TAPS):
        block = sch.get_sblock(name)
        rank = len(sch.get_loops(block))
        sch.compute_at(block, thread, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        if name in STAGES:
            loops = sch.get_loops(block)[-rank:]
            row = loops.pop(STAGES.index(name))
            sch.reorder(*loops, row)
            sch.unroll(row)
    return sch.mod


def _spread(sch: Schedule, loops: list[LoopRV]) -> LoopRV:
    """Spreads loops over threads, neighbours along the last one side by side; returns the loop of threads."""
    block, thread = sch.split(sch.fuse(*loops), [None, _THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread
