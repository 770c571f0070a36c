"""Design space of the gradient of weights as a matrix product on CUDA cores."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.variants import WeightGradientGemmVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.bias_gradient import schedule_bias
from tvm_conv3d.schedules.cuda.common import BANKS, SKEW, spread_over_threads
from tvm_conv3d.schedules.cuda.register_tile import Sums, clear, place_tiles
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST


def apply(sch: Schedule, spec: CanonicalSpec, variant: WeightGradientGemmVariant, decide: Decisions) -> None:
    """Schedules `compute.weight_gradient_gemm.declare(spec, variant)`.

    Decisions: those of :mod:`tvm_conv3d.schedules.cuda.register_tile`.
    """
    sums = place_tiles(sch, variant, filters_last=True, taps=0, decide=decide)
    for name in ("gather", "gradients"):
        _fetch(sch, name, variant.threads_cells * variant.threads_filters, spec, sums)
    clear(sch, sums)
    if spec.bias:
        schedule_bias(sch, spec)


def _fetch(sch: Schedule, name: str, threads: int, spec: CanonicalSpec, sums: Sums) -> None:
    """Brings a step of one of the matrices into shared memory."""
    last = spec.data_format == CHANNELS_LAST
    matrix = sch.get_sblock(name)
    sch.set_scope(matrix, 0, "shared")
    if not last:
        # neighbouring threads write neighbouring positions, whose rows begin 4 banks apart
        sch.storage_align(matrix, 0, -3, BANKS, SKEW)
    sch.compute_at(matrix, sums.step, preserve_unit_loops=True)
    position, number, lane = sch.get_loops(matrix)[-3:]
    # neighbouring threads read neighbouring elements
    order = (position, number) if last else (number, position)
    sch.reorder(*order, lane)
    spread_over_threads(sch, order, threads, lane)
