"""Design space of the depthwise convolution on a CPU.

A task owns a box of output depths, rows and vectors of a row; it copies the positions it reads into a buffer of its
own. A register tile is one vector wide and some rows high, the taps of height unrolled beside it: a loaded vector of
input serves all rows whose windows hold it, and a vector of weights all rows of the tile.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.depthwise import DepthwiseVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, vectorize_copy
from tvm_conv3d.schedules.llvm.passes import mask_output_tail, nontemporal_stores, skip_padding_taps


def apply(sch: Schedule, spec: CanonicalSpec, variant: DepthwiseVariant, decide: Decisions) -> None:
    """Schedules `compute.depthwise.declare(spec, variant)`.

    Decisions: `depth`, `rows` (in register tiles): output of a task.
    """
    n, d, h, j = sch.get_loops(sch.get_sblock("out"))
    row_tiles, hi = sch.split(h, [None, variant.rows])
    v_task, v_in, lane = sch.split(j, [None, variant.vectors, variant.lanes])
    d_task, d_in = decide.tile("depth", d, default=1)
    h_task, h_in = decide.tile("rows", row_tiles, default=1)
    sch.reorder(n, d_task, h_task, v_task, d_in, v_in, h_in, hi, lane)
    task = sch.fuse(n, d_task, h_task, v_task)
    sch.parallel(task)
    mask_output_tail.mark(sch)
    if variant.stream:
        nontemporal_stores.mark(sch)
    sch.compute_inline(sch.get_sblock("tile"))
    sch.unroll(hi)
    sch.vectorize(lane)
    conv = place(sch, "conv", h_in)
    rows, _, lanes, tap_d, tap_h, tap_w = sch.get_loops(conv)[-6:]
    skip_padding_taps.mark(sch, spec, {0: tap_d}, {0: 1})
    sch.unroll(tap_h)
    keep_in_registers(sch, conv, (tap_d, tap_w, tap_h), (rows, lanes))
    gather = sch.get_sblock("gather")
    sch.compute_at(gather, task, preserve_unit_loops=True)
    if spec.strides[2] > 1:
        # a phase's positions do not lie side by side: copied one by one
        _, channels = sch.split(sch.get_loops(gather)[-1], [None, spec.channels])
        vectorize_copy(sch, channels, variant.lanes)
