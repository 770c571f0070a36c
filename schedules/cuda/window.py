"""Design space of the convolution by windows in registers: few filters a group, depthwise included."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.window import WindowVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import unroll, unroll_by_pragma
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST

#: Channels of a group that are read at once.
_VECTOR = 4

#: Taps of a slice up to which it is unrolled whole.
_MAX_UNROLLED = 25


def apply(sch: Schedule, spec: CanonicalSpec, variant: WindowVariant, decide: Decisions) -> None:
    """Schedules `compute.window.declare(spec, variant)`.

    Decisions: `unroll`: channels that are unrolled.
    """
    out = sch.get_sblock("out")
    block, thread, i, j = sch.get_loops(out)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    unroll(sch, (i, j))
    conv = sch.get_sblock("conv")
    sch.set_scope(conv, 0, "local")
    sch.compute_at(conv, thread, preserve_unit_loops=True)
    i, j, tap_d, channel, tap_h, tap_w = sch.get_loops(conv)[-6:]
    # neighbours in memory are read as a vector
    vector = spec.data_format == CHANNELS_LAST and spec.group_channels % _VECTOR == 0
    channel, few = decide.tile("unroll", channel, default=_VECTOR if vector else 1, limit=4)
    sch.reorder(tap_d, channel, few, tap_h, tap_w, i, j)
    sch.unroll(few)
    unroll(sch, (i, j))
    _, height, width = spec.kernel
    whole = height * width <= _MAX_UNROLLED
    # taps of very wide kernels stay loops
    unroll(sch, (tap_h, tap_w) if whole else (tap_w,) if width <= _MAX_UNROLLED else ())
    window = sch.get_sblock("window")
    sch.set_scope(window, 0, "local")
    at = few if whole or variant.rows > 1 else tap_h if variant.columns > 1 or width <= _MAX_UNROLLED else tap_w
    if vector and at is few and int(sch.get(few).extent) == _VECTOR:
        sch.compute_at(window, channel, preserve_unit_loops=True)
        lane, y, z = sch.get_loops(window)[-3:]
        sch.reorder(y, z, lane)
        unroll(sch, (y, z))
        sch.vectorize(lane)
    else:
        sch.compute_at(window, at, preserve_unit_loops=True)
        unroll(sch, sch.get_loops(window)[-2:])
    start = sch.decompose_reduction(conv, tap_d)
    unroll(sch, sch.get_loops(start)[-2:])
