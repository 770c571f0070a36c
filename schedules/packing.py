"""What the schedules of packing share: the stages that a declaration has, and the loops of its store by name."""

from __future__ import annotations

from typing import Any

from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.winograd_packing import STAGES, TAPS

LoopRV = Any


def transforms_of(sch: Schedule) -> list[str]:
    """Names of the stages that transform weights, in their order; none where weights are copied.

    Taps that nothing transforms are read where they are stored.
    """
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    present = {str(sch.get(block).name_hint) for block in blocks}
    transforms = [name for name in reversed(STAGES) if name in present]
    if TAPS in present and not transforms:
        sch.compute_inline(sch.get_sblock(TAPS))
    return transforms


def loops_by_name(sch: Schedule) -> dict[str, LoopRV]:
    """The loops of the packed kernel's store, outermost first."""
    loops = sch.get_loops(sch.get_sblock(PACKED_KERNEL))
    return {str(sch.get(loop).loop_var.name): loop for loop in loops}
