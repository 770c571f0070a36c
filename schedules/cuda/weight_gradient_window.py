"""Design space of the gradient of weights by windows in registers: few weights a group, depthwise included."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.variants import WeightGradientWindowVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.bias_gradient import schedule_bias
from tvm_conv3d.schedules.cuda.common import add_parts, unroll, unroll_by_pragma
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST


def apply(sch: Schedule, spec: CanonicalSpec, variant: WeightGradientWindowVariant, decide: Decisions) -> None:
    """Schedules `compute.weight_gradient_window.declare(spec, variant)`.

    Decisions: `unroll`: runs that are unrolled, which the compiler then reads ahead.
    """
    partial, product = sch.get_sblock("partial"), sch.get_sblock("product")
    part, row, f, lane = sch.get_loops(partial)
    row, taps = sch.split(row, [None, variant.taps])
    parts, part = sch.split(part, [None, variant.threads_parts])
    filters, f = sch.split(sch.fuse(f, lane), [None, variant.threads_filters])
    # neighbouring threads read neighbouring elements
    order = (part, f) if spec.data_format == CHANNELS_LAST else (f, part)
    sch.reorder(parts, row, filters, *order, taps)
    block, thread = sch.fuse(parts, row, filters), sch.fuse(*order)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    unroll(sch, [taps])
    sch.set_scope(product, 0, "local")
    sch.compute_at(product, thread, preserve_unit_loops=True)
    tap, _, _, run, column = sch.get_loops(product)[-5:]
    run, few = decide.tile("unroll", run, default=1, limit=8)
    sch.reorder(run, few, column, tap)
    unroll(sch, (few, column, tap))
    for name in ("window", "gradients"):
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, few, preserve_unit_loops=True)
        unroll(sch, sch.get_loops(stage)[-1:])
    unroll(sch, sch.get_loops(sch.decompose_reduction(product, run))[-1:])
    add_parts(sch, filters_last=True)
    if spec.bias:
        schedule_bias(sch, spec)
