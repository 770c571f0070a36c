"""Design space of Winograd's algorithm on CUDA cores: three kernels.

The first and the last have a thread for each tile and channel, or filter, that holds the tile in registers; between
them are matrix products whose tiles threads sum in registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import LANES, along_width, by_planes, extents_of
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.schedules.cuda.common import LoopRV, pipeline, spread_over_threads, unroll
from tvm_conv3d.schedules.cuda.finish import IF_NONZERO
from tvm_conv3d.schedules.cuda.register_tile import bind_tile, clear, fetch_kernel, sum_in_registers
from tvm_conv3d.schedules.cuda.winograd_planes import LOOPS, hold, transform_planes, transform_planes_back
from tvm_conv3d.schedules.decisions import Decisions, divisors
from tvm_conv3d.spec import CHANNELS_LAST

#: Neighbouring tiles that neighbouring threads transform: the choices.
_NEAR = (4, 8, 16, 32)

#: Channels or filters of a block of threads that transforms, at most.
_MAX_CHANNELS, _MAX_FILTERS = 16, 32

#: Threads of such a block where nothing was tuned.
_THREADS = 128

#: Loops of blocks and of threads of both kernels.
_LOOPS = 3


def apply(sch: Schedule, spec: CanonicalSpec, variant: WinogradGemmVariant, decide: Decisions) -> None:
    """Schedules `compute.winograd_gemm.declare(spec, variant)`.

    Decisions: `near_data`, `near_out`: neighbouring tiles that neighbouring threads of the first and the last kernel
    take; and those of :mod:`tvm_conv3d.schedules.cuda.register_tile`.
    """
    e = extents_of(spec, variant)
    (transform_planes if by_planes(spec, variant) else _transform_data)(sch, spec, variant, decide)
    last = spec.data_format == CHANNELS_LAST
    if not last:
        *_, filters, cells, _ = sch.get_loops(sch.get_sblock("sums"))
        sch.reorder(cells, filters)
    thread = bind_tile(sch, "sums", variant, LANES, last, decide, variant.stages)
    sums = sum_in_registers(sch, thread, 1, variant.step, decide, fused=variant.stages > 1)
    gather = sch.get_sblock("gather")
    sch.set_scope(gather, 0, "shared")
    sch.compute_at(gather, sums.step, preserve_unit_loops=True)
    term, q, lane = sch.get_loops(gather)[-3:]
    spread_over_threads(sch, (term, q), variant.threads_cells * variant.threads_filters, lane)
    fetch_kernel(sch, sums, variant, LANES)
    clear(sch, sums)
    if variant.stages > 1:
        pipeline(sch, sums.step, variant.stages)
    planes = by_planes(spec, variant)
    if planes:
        thread = transform_planes_back(sch, spec, variant, decide)
    else:
        thread = _transform_back(sch, spec, variant, math.prod(e.data_shape) // e.rows * e.tiles[0], decide)
    _finish_bad(sch, spec, thread)
    hold(
        sch,
        ("bad", "flag", "output_w", "output_h", "output_d", "spectrum"),
        variant,
        thread,
        LOOPS if planes else _LOOPS,
    )


def _transform_data(sch: Schedule, s: CanonicalSpec, variant: WinogradGemmVariant, decide: Decisions) -> None:
    """Spreads the input's transforms over threads."""
    e = extents_of(s, variant)
    frequency, c, row, t = sch.get_loops(sch.get_sblock("data"))
    channels = max(d for d in divisors(e.steps * variant.step) if d <= _MAX_CHANNELS)
    far, near = sch.split(sch.fuse(row, t), [None, _near("near_data", math.prod(e.data_shape), channels, s, decide)])
    c, channel = sch.split(c, [None, channels])
    sch.reorder(far, c, channel, near, frequency)
    thread = _bind(sch, far, c, (channel, near))
    sch.unroll(frequency)
    hold(sch, ("input_d", "input_h", "input_w", "window"), variant, thread, _LOOPS)
    if along_width(s, variant, s.size[2]) > 1:
        hold(sch, ("vectors",), variant, thread, _LOOPS)
        sch.vectorize(sch.get_loops(sch.get_sblock("vectors"))[-1])


def _transform_back(
    sch: Schedule, s: CanonicalSpec, variant: WinogradGemmVariant, count: int, decide: Decisions
) -> LoopRV:
    """Spreads the inverse transforms, and what finishes a tile, over threads; `count` tiles for each filter."""
    e = extents_of(s, variant)
    row, t, g, *cells = sch.get_loops(sch.get_sblock("out"))
    filters = max(d for d in divisors(e.filter_blocks * variant.filters) if d <= _MAX_FILTERS)
    if s.data_format != CHANNELS_LAST:
        filters = min(filters, LANES)
    far, near = sch.split(sch.fuse(row, t), [None, _near("near_out", count, filters, s, decide)])
    g, filter_ = sch.split(g, [None, filters])
    # neighbouring threads store neighbouring elements
    threads = (near, filter_) if s.data_format == CHANNELS_LAST else (filter_, near)
    sch.reorder(far, g, *threads, *cells)
    thread = _bind(sch, far, g, threads)
    unroll(sch, cells)
    if s.data_format != CHANNELS_LAST:
        hold(sch, ("tile",), variant, thread, _LOOPS)
        if along_width(s, variant, s.out_size[2]) > 1:
            sch.vectorize(cells[-1])
    return thread


def _finish_bad(sch: Schedule, s: CanonicalSpec, thread: LoopRV) -> None:
    """Places what computes a tile by the definition."""
    direct = sch.get_sblock("direct")
    sch.set_scope(direct, 0, "local")
    sch.compute_at(direct, thread, preserve_unit_loops=True)
    cells, taps = sch.get_loops(direct)[-7], sch.get_loops(direct)[-4]
    # by the definition where the tile is bad only
    sch.annotate(cells, IF_NONZERO, 1)
    terms = math.prod(s.kernel) * s.group_channels
    if terms > terms_of_part(terms, on_gpu=True):
        sch.decompose_reduction(direct, taps)


def _near(name: str, count: int, others: int, s: CanonicalSpec, decide: Decisions) -> LoopRV:
    """Neighbouring tiles of a block of threads that holds `others` channels or filters."""
    choices = [near for near in _NEAR if count % near == 0]
    requested = max(_NEAR[0], min(_THREADS // others, _NEAR[-1]))
    return decide.choice(name, choices, max(near for near in choices if near <= requested))


def _bind(sch: Schedule, tiles: LoopRV, others: LoopRV, threads: Iterable[LoopRV]) -> LoopRV:
    # apart, as TVM would not see through their quotients which tile a thread has
    sch.bind(tiles, "blockIdx.x")
    sch.bind(others, "blockIdx.y")
    thread = sch.fuse(*threads)
    sch.bind(thread, "threadIdx.x")
    return thread
