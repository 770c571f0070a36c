"""Design space of Winograd's algorithm on CUDA cores: three kernels.

The first and the last have a thread for each tile and channel, or filter, that holds the tile in registers; between
them are matrix products whose tiles threads sum in registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import LANES, along_width, extents_of
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.schedules.cuda.common import LoopRV, spread_over_threads, unroll
from tvm_conv3d.schedules.cuda.finish import IF_NONZERO
from tvm_conv3d.schedules.cuda.register_tile import bind_tile, clear, fetch_kernel, sum_in_registers
from tvm_conv3d.schedules.decisions import Decisions, divisors
from tvm_conv3d.spec import CHANNELS_LAST

#: Neighbouring tiles that neighbouring threads transform: the choices.
_NEAR = (4, 8, 16, 32)

#: Channels or filters of a block of threads that transforms, at most.
_MAX_CHANNELS, _MAX_FILTERS = 16, 32

#: Threads of such a block where nothing was tuned.
_THREADS = 128


def apply(sch: Schedule, spec: CanonicalSpec, variant: WinogradGemmVariant, decide: Decisions) -> None:
    """Schedules `compute.winograd_gemm.declare(spec, variant)`.

    Decisions: `near_data`, `near_out`: neighbouring tiles that neighbouring threads of the first and the last kernel
    take; and those of :mod:`tvm_conv3d.schedules.cuda.register_tile`.
    """
    e = extents_of(spec, variant)
    _transform_data(sch, spec, variant, decide)
    last = spec.data_format == CHANNELS_LAST
    if not last:
        *_, filters, cells, _ = sch.get_loops(sch.get_sblock("sums"))
        sch.reorder(cells, filters)
    thread = bind_tile(sch, "sums", variant, LANES, last, decide)
    sums = sum_in_registers(sch, thread, 1, variant.step, decide)
    gather = sch.get_sblock("gather")
    sch.set_scope(gather, 0, "shared")
    sch.compute_at(gather, sums.step, preserve_unit_loops=True)
    term, q, lane = sch.get_loops(gather)[-3:]
    spread_over_threads(sch, (term, q), variant.threads_cells * variant.threads_filters, lane)
    fetch_kernel(sch, sums, variant, LANES)
    clear(sch, sums)
    _transform_back(sch, spec, variant, math.prod(e.data_shape) // e.rows * e.tiles[0], decide)


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
    _hold(sch, ("input_d", "input_h", "input_w", "window"), variant, thread)
    if along_width(s, variant, s.size[2]) > 1:
        _hold(sch, ("vectors",), variant, thread)
        sch.vectorize(sch.get_loops(sch.get_sblock("vectors"))[-1])


def _transform_back(
    sch: Schedule, s: CanonicalSpec, variant: WinogradGemmVariant, count: int, decide: Decisions
) -> None:
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
        _hold(sch, ("tile",), variant, thread)
        if along_width(s, variant, s.out_size[2]) > 1:
            sch.vectorize(cells[-1])
    direct = sch.get_sblock("direct")
    sch.set_scope(direct, 0, "local")
    sch.compute_at(direct, thread, preserve_unit_loops=True)
    cells, taps = sch.get_loops(direct)[-7], sch.get_loops(direct)[-4]
    # by the definition where the tile is bad only
    sch.annotate(cells, IF_NONZERO, 1)
    terms = math.prod(s.kernel) * s.group_channels
    if terms > terms_of_part(terms, on_gpu=True):
        sch.decompose_reduction(direct, taps)
    _hold(sch, ("bad", "flag", "output_w", "output_h", "output_d", "spectrum"), variant, thread)


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


def _hold(sch: Schedule, names: Iterable[str], variant: WinogradGemmVariant, thread: LoopRV) -> None:
    """Places stages, the last first, in the registers of a thread; loops are unrolled, as registers have no index."""
    untransformed = [axis for axis, m in zip("dhw", variant.tile, strict=True) if m == 1]
    absent = [f"{way}_{axis}" for way in ("input", "output") for axis in untransformed]
    for name in names:
        if name in absent:
            continue
        stage = sch.get_sblock(name)
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        # two loops of blocks, one of threads, and what a thread does
        unroll(sch, sch.get_loops(stage)[3:])
