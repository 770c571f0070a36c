"""Design space of the convolution by windows in registers: few filters a group, depthwise included."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.window import WindowVariant, channels_at_once
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import LoopRV, read_at_once, unroll, unroll_by_pragma
from tvm_conv3d.schedules.decisions import Decisions

#: Taps of a slice up to which it is unrolled whole.
_MAX_UNROLLED = 25


def apply(sch: Schedule, spec: CanonicalSpec, variant: WindowVariant, decide: Decisions) -> None:
    """Schedules `compute.window.declare(spec, variant)`.

    Decisions: `unroll`: channels that are unrolled.
    """
    out, tile, conv = (sch.get_sblock(name) for name in ("out", "tile", "conv"))
    block, thread, i, j, lane = sch.get_loops(out)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    unroll(sch, (i, j))
    if variant.lanes > 1:
        sch.vectorize(lane)
    for stage in (tile, conv):
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(tile)[-3:])
    i, j, lane, tap_d, channel, tap_h, tap_w = sch.get_loops(conv)[-7:]
    # neighbours in memory are read as a vector
    together = channels_at_once(spec)
    vector = together > 1
    channel, few = decide.tile("unroll", channel, default=together, limit=4)
    _, height, width = spec.kernel
    whole, narrow = height * width <= _MAX_UNROLLED, width <= _MAX_UNROLLED
    # vectors of one row of taps after the other: of all rows at once they would take twice the registers
    by_rows = variant.rows == 1 and (vector or variant.lanes > 1) and (variant.columns > 1 or narrow)
    sch.reorder(tap_d, channel, *((tap_h, tap_w, few) if by_rows else (few, tap_h, tap_w)), i, j, lane)
    unroll(sch, (few, i, j, lane))
    # taps of very wide kernels stay loops
    unroll(sch, (tap_h, tap_w) if whole else (tap_w,) if narrow else ())
    at = few if (whole and not by_rows) or variant.rows > 1 else tap_h if variant.columns > 1 or narrow else tap_w
    vector = vector and (at is few or by_rows) and int(sch.get(few).extent) == together
    _hold_window(sch, channel if vector and at is few else at, vector, variant.lanes)
    if variant.lanes > 1 or (vector and by_rows):
        read_at_once(sch, conv, "kernel", tap_w)
    if variant.lanes > 1:
        read_at_once(sch, tile, "bias", thread)
    start = sch.decompose_reduction(conv, tap_d)
    unroll(sch, sch.get_loops(start)[-3:])


def _hold_window(sch: Schedule, at: LoopRV, vector: bool, lanes: int) -> None:
    """Reads the window at a loop, channels of a group or those of a thread's filters at once."""
    window = sch.get_sblock("window")
    sch.set_scope(window, 0, "local")
    sch.compute_at(window, at, preserve_unit_loops=True)
    channel, y, z, lane = sch.get_loops(window)[-4:]
    unroll(sch, (y, z) if vector else (channel, y, z))
    if vector:
        sch.reorder(y, z, lane, channel)
        sch.vectorize(channel)
    elif lanes > 1:
        sch.vectorize(lane)
