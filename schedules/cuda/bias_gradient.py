"""Loops of the gradient of a bias: a thread for each part and vector of filters, then a few for each filter."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.bias_gradient import LANES
from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import ADDING_THREADS, BANKS, SKEW, unroll, unroll_by_pragma
from tvm_conv3d.spec import CHANNELS_LAST


def schedule_bias(sch: Schedule, spec: CanonicalSpec) -> None:
    """Schedules `compute.bias_gradient.declare_bias`."""
    last = spec.data_format == CHANNELS_LAST
    _sum_parts(sch, last)
    _add_parts(sch, last)


def _sum_parts(sch: Schedule, last: bool) -> None:
    """Each thread reads vectors, and sums in registers."""
    part, read = sch.get_sblock("bias_part"), sch.get_sblock("bias_read")
    stored = sch.cache_write(part, 0, "local")
    first, second, *lane = sch.get_loops(stored)
    block, thread = sch.split(sch.fuse(first, second), [None, ADDING_THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    for loop in lane:
        sch.vectorize(loop)
    sch.compute_at(part, thread, preserve_unit_loops=True)
    # in channels_last sums of the lanes, else a sum over them
    loops = sch.get_loops(part)
    lane, k = (loops[-2], loops[-1]) if last else (loops[-1], loops[-2])
    sch.reorder(k, lane)
    unroll(sch, (lane,))
    sch.set_scope(read, 0, "local")
    sch.compute_at(read, k, preserve_unit_loops=True)
    sch.vectorize(sch.get_loops(read)[-1])
    sch.decompose_reduction(part, k)


def _add_parts(sch: Schedule, last: bool) -> None:
    """Threads of a block add a few parts each of its filters; then one for each filter adds what they have."""
    stored, total, lanes = (sch.get_sblock(name) for name in (BIAS_GRADIENT, "bias_total", "bias_lane"))
    block, f = sch.get_loops(stored)
    sch.bind(block, "blockIdx.x")
    # of all threads the first few
    _, f = sch.split(f, [None, LANES * int(sch.get(f).extent)])
    sch.bind(f, "threadIdx.x")
    sch.set_scope(total, 0, "local")
    sch.compute_at(total, f, preserve_unit_loops=True)
    sch.decompose_reduction(total, sch.get_loops(total)[-1])
    sch.set_scope(lanes, 0, "shared")
    together = sch.cache_write(lanes, 0, "local")
    # threads of neighbouring filters read and write different banks
    sch.storage_align(together, 0, 1, BANKS, SKEW)
    sch.compute_at(together, block, preserve_unit_loops=True)
    f, lane = sch.get_loops(together)[-2:]
    order = (lane, f) if last else (f, lane)
    sch.reorder(*order)
    thread = sch.fuse(*order)
    sch.bind(thread, "threadIdx.x")
    sch.compute_at(lanes, thread, preserve_unit_loops=True)
    sch.decompose_reduction(lanes, sch.get_loops(lanes)[-1])
