"""Design space of the convolution by windows in registers: few filters a group, depthwise included."""

from __future__ import annotations

import math

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.window import MAX_HELD_TAPS, WindowVariant, channels_at_once
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import LoopRV, read_at_once, unroll, unroll_by_pragma
from tvm_conv3d.schedules.decisions import Decisions


def apply(sch: Schedule, spec: CanonicalSpec, variant: WindowVariant, decide: Decisions) -> None:
    """Schedules `compute.window.declare(spec, variant)`.

    Decisions: `unroll`: channels that are unrolled.
    """
    out, tile, conv = (sch.get_sblock(name) for name in ("out", "tile", "conv"))
    block, thread, *positions, lane = sch.get_loops(out)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    unroll(sch, positions)
    if variant.lanes > 1:
        sch.vectorize(lane)
    for stage in (tile, conv):
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(tile)[-4:])
    *positions, lane, tap_d, channel, tap_h, tap_w = sch.get_loops(conv)[-8:]
    # neighbours in memory are read as a vector
    together = channels_at_once(spec)
    channel, few = decide.tile("unroll", channel, default=together, limit=max(4, together))
    vectors = together > 1 and int(sch.get(few).extent) == together
    # one line of taps after the other, along which a thread's positions lie, of one slice after the other
    slices, far, near, (tiled, taps) = tap_d, tap_h, tap_w, (variant.columns, spec.kernel[2])
    if variant.rows > 1:
        far, near, (tiled, taps) = tap_w, tap_h, (variant.rows, spec.kernel[1])
    elif variant.planes > 1:
        slices, far, near, (tiled, taps) = tap_h, tap_w, tap_d, (variant.planes, spec.kernel[0])
    in_slice = math.prod(spec.kernel) // spec.kernel[1 if slices is tap_h else 0]
    # taps of very long lines stay loops, and those of a single position are then read one by one
    whole, by_taps = in_slice <= MAX_HELD_TAPS, tiled == 1 and taps > MAX_HELD_TAPS
    # vectors of one line after the other: of all lines at once they would take twice the registers
    by_lines = (together > 1 or variant.lanes > 1) and not by_taps
    by_lines = by_lines and 1 in (variant.rows * variant.planes, variant.columns)
    sch.reorder(slices, channel, *((far, near, few) if by_lines else (few, far, near)), *positions, lane)
    unroll(sch, (few, *positions, lane))
    unroll(sch, (far, near) if whole else (near,) if taps <= MAX_HELD_TAPS else ())
    held = not by_lines and (whole or variant.rows * variant.planes > 1)
    at = few if held else near if by_taps else far
    vectors = vectors and (held or by_lines)
    _hold_window(sch, channel if vectors and held else at, vectors, variant.lanes)
    if variant.lanes > 1 or (vectors and by_lines):
        read_at_once(sch, conv, "kernel", near)
    if variant.lanes > 1:
        read_at_once(sch, tile, "bias", thread)
    start = sch.decompose_reduction(conv, slices)
    unroll(sch, sch.get_loops(start)[-4:])


def _hold_window(sch: Schedule, at: LoopRV, vectors: bool, lanes: int) -> None:
    """Reads the window at a loop: channels of a group, those of a thread's filters, or positions of a row at once."""
    window = sch.get_sblock("window")
    sch.set_scope(window, 0, "local")
    sch.compute_at(window, at, preserve_unit_loops=True)
    *positions, near, lane, channel = sch.get_loops(window)[-6:]
    unroll(sch, positions)
    vector = channel if vectors else lane if lanes > 1 else near
    unroll(sch, [loop for loop in (near, channel) if loop is not vector])
    sch.reorder(*[loop for loop in (*positions, near, lane, channel) if loop is not vector], vector)
    sch.vectorize(vector)
