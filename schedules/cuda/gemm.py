"""Design space of the implicit matrix product on CUDA cores: tiles that threads sum in registers."""

from __future__ import annotations

import math

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.implicit_gemm import GemmVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import BANKS, SKEW, LoopRV, pipeline, reads_along_terms, spread_over_threads
from tvm_conv3d.schedules.cuda.register_tile import clear, fetch_kernel, place_tiles
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST

#: Filters that are brought into shared memory at once, where they are float32.
WEIGHTS_AT_ONCE = {"float32": 4, "float64": 2}


def apply(sch: Schedule, spec: CanonicalSpec, variant: GemmVariant, decide: Decisions) -> None:
    """Schedules `compute.implicit_gemm.declare(spec, variant)`.

    Decisions: those of :mod:`tvm_conv3d.schedules.cuda.register_tile`.
    """
    sums = place_tiles(sch, variant, spec.data_format == CHANNELS_LAST, len(spec.kernel), decide, variant.stages)
    _gather(sch, spec, variant, sums.step)
    fetch_kernel(sch, sums, variant, WEIGHTS_AT_ONCE[spec.accumulator])
    clear(sch, sums)
    if variant.stages > 1:
        pipeline(sch, sums.step, variant.stages)


def _gather(sch: Schedule, s: CanonicalSpec, variant: GemmVariant, step: LoopRV) -> None:
    """Brings a step of the input into shared memory."""
    gather = sch.get_sblock("gather")
    sch.set_scope(gather, 0, "shared")
    along_terms = reads_along_terms(s, variant.flat)
    # where positions lie 2 apart, and terms are taps, as many taps fill the sectors between them
    near = math.gcd(s.strides[2], variant.step) if variant.flat and variant.vector == 1 and not along_terms else 1
    # neighbouring threads write neighbouring terms, whose rows begin 4 banks apart, or behind the positions' banks
    sch.storage_align(gather, 0, -2, BANKS, BANKS // near if near > 1 else SKEW)
    sch.compute_at(gather, step, preserve_unit_loops=True)
    q, v, i = sch.get_loops(gather)[-3:]
    # neighbouring threads read neighbouring elements
    order = [i, q] if along_terms else [q, i]
    if near > 1:
        (q, tap), (far, i) = sch.split(q, [None, near]), sch.split(i, [None, math.gcd(variant.cells, BANKS // near)])
        order = [q, far, tap, i]
    sch.reorder(*order, v)
    # asynchronous copies do not turn vectors: they are of single elements, which share an index
    vector = v if variant.stages == 1 else None
    spread_over_threads(sch, order, variant.threads_cells * variant.threads_filters, vector)
    if vector is None:
        sch.unroll(v)
