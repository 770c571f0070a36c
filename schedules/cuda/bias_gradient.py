"""Loops of the gradient of a bias: a thread for each part and filter, then one for each filter."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT
from tvm_conv3d.schedules.cuda.common import ADDING_THREADS, BlockRV, LoopRV


def schedule_bias(sch: Schedule) -> None:
    """Schedules `compute.bias_gradient.declare_bias`."""
    part = sch.get_sblock("bias_part")
    stored = sch.cache_write(part, 0, "local")
    _sum_by_threads(sch, part, _spread(sch, stored, 2))
    total = sch.get_sblock("bias_total")
    sch.set_scope(total, 0, "local")
    _sum_by_threads(sch, total, _spread(sch, sch.get_sblock(BIAS_GRADIENT), 1))


def _spread(sch: Schedule, stored: BlockRV, axes: int) -> LoopRV:
    """Spreads what is stored over threads; returns the loop of them."""
    block, thread = sch.split(sch.fuse(*sch.get_loops(stored)[:axes]), [None, ADDING_THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def _sum_by_threads(sch: Schedule, sums: BlockRV, thread: LoopRV) -> None:
    """Lets each thread sum in a register."""
    sch.compute_at(sums, thread, preserve_unit_loops=True)
    sch.decompose_reduction(sums, sch.get_loops(sums)[-1])
