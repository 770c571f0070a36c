"""Design space of the implicit matrix product on CUDA cores.

A block of threads owns a tile of output cells by filters; each thread sums a small tile of it in registers, from steps
of both matrices that the threads of the block bring into shared memory together.
"""

from __future__ import annotations

from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.compute.cut import cut_output
from tvm_conv3d.compute.implicit_gemm import GemmVariant
from tvm_conv3d.cuda.architectures import GpuTraits
from tvm_conv3d.schedules.cuda.common import LoopRV, spread_over_threads, unroll, unroll_by_pragma
from tvm_conv3d.schedules.cuda.gemm_rule import candidates
from tvm_conv3d.schedules.decisions import Decisions, divisors
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec

#: Filters that are brought into shared memory at once, where they are float32.
_WEIGHTS_AT_ONCE = {"float32": 4, "float64": 2}


#: Variants that compete while tuning.
MOST_VARIANTS = 8


def default(spec: Conv3DSpec, traits: GpuTraits) -> tuple[GemmVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    return candidates(collapse(spec), traits)[0], {}


def variants(spec: Conv3DSpec, traits: GpuTraits) -> list[GemmVariant]:
    """The variants that compete while tuning, the default's first."""
    return candidates(collapse(spec), traits)[:MOST_VARIANTS]


def apply(sch: Schedule, spec: Conv3DSpec, variant: GemmVariant, decide: Decisions) -> None:
    """Schedules `compute.implicit_gemm.declare(spec, variant)`.

    Decisions: `near_cells`, `near_filters`: neighbouring cells and filters of a thread's tile, the rest of which lies
    `threads` of these apart (virtual threads); `unroll`: terms of a step that are unrolled.
    """
    s = collapse(spec)
    thread = _tile_loops(sch, s, variant, decide)
    product = sch.get_sblock("product")
    sch.set_scope(product, 0, "local")
    sch.compute_at(product, thread, preserve_unit_loops=True)
    i, j, *taps, step, term = sch.get_loops(product)[-7:]
    outer, few = decide.tile("unroll", term, default=variant.step)
    sch.reorder(*taps, step, outer, few, i, j)
    unroll(sch, (few, i, j))
    _fetch(sch, s, variant, step)
    start = sch.decompose_reduction(product, taps[0])
    unroll(sch, sch.get_loops(start)[-2:])


def _tile_loops(sch: Schedule, s: Conv3DSpec, variant: GemmVariant, decide: Decisions) -> LoopRV:
    """Binds the loops over tiles and inside one; returns the loop of one thread's share."""
    last = s.data_format == CHANNELS_LAST
    *tiles, i, j, lane = sch.get_loops(sch.get_sblock("out"))
    block = sch.fuse(*tiles)
    inner = []
    for name, loop, size, threads, vector in (
        ("near_cells", i, variant.cells, variant.threads_cells, 1 if last else variant.store),
        ("near_filters", j, variant.filters, variant.threads_filters, variant.store if last else 1),
    ):
        near = divisors(size // threads // vector)
        default = max(d for d in near if d * vector <= max(4, vector))
        inner.append(sch.split(loop, [None, threads, decide.choice(name, near, default)]))
    (far_i, thread_i, near_i), (far_j, thread_j, near_j) = inner
    # neighbouring threads store neighbouring elements
    order = (thread_i, thread_j) if last else (thread_j, thread_i)
    sch.reorder(far_i, far_j, *order, near_i, near_j, lane)
    far, thread = sch.fuse(far_i, far_j), sch.fuse(*order)
    for loop, axis in ((block, "blockIdx.x"), (far, "vthread.x"), (thread, "threadIdx.x")):
        sch.bind(loop, axis)
    unroll_by_pragma(sch, block)
    unroll(sch, (near_i, near_j))
    if variant.store > 1:
        sch.vectorize(lane)
    tile = sch.get_sblock("tile")
    sch.set_scope(tile, 0, "local")
    sch.compute_at(tile, thread, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(tile)[-2:])
    return thread


def _fetch(sch: Schedule, s: Conv3DSpec, variant: GemmVariant, step: LoopRV) -> None:
    """Brings one step of both matrices into shared memory."""
    threads = variant.threads_cells * variant.threads_filters
    gather = sch.get_sblock("gather")
    sch.set_scope(gather, 0, "shared")
    sch.compute_at(gather, step, preserve_unit_loops=True)
    q, v, i = sch.get_loops(gather)[-3:]
    # neighbouring threads read neighbouring elements
    order = (i, q) if s.data_format == CHANNELS_LAST else (q, i)
    sch.reorder(*order, v)
    spread_over_threads(sch, order, threads, v)
    kernel = sch.cache_read(sch.get_sblock("product"), 1, "shared")
    sch.compute_at(kernel, step, preserve_unit_loops=True)
    term, j = sch.get_loops(kernel)[-2:]
    j, lanes = sch.split(j, [None, _WEIGHTS_AT_ONCE[s.accumulator]])
    spread_over_threads(sch, (term, j), threads, lanes)


def finish(module: IRModule, spec: Conv3DSpec) -> IRModule:
    """What is changed after scheduling: the output gets the user's layout."""
    return cut_output(module)
