"""Design space of the direct convolution on a CPU.

A task owns a box of output positions; it copies the positions it reads, zeros included, into a buffer of its own, then
computes one register tile after the other. The sums of a tile stay in registers over all taps and channels.
"""

from __future__ import annotations

from typing import NamedTuple

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.direct import DirectVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import (
    gather_interleaved,
    keep_in_registers,
    place,
    store_in_order,
    transpose_sums,
    unroll,
    vectorize_copy,
)
from tvm_conv3d.schedules.llvm.costs import prefetch
from tvm_conv3d.schedules.llvm.passes import (
    insert_prefetch,
    mask_output_tail,
    nontemporal_stores,
    shuffle_permuted_loads,
    skip_missing_taps,
    skip_padding_taps,
    stream_contiguous_runs,
    transpose_copies,
)
from tvm_conv3d.spec import CHANNELS_LAST


def apply(sch: Schedule, spec: CanonicalSpec, variant: DirectVariant, decide: Decisions) -> None:
    """Schedules `compute.direct.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output positions of a task, the latter two in register tiles; `strip`, where
    there are strips: register tiles of one; `unroll`: channels per step of the reduction.
    """
    if spec.data_format == CHANNELS_LAST:
        mask_output_tail.mark(sch)
    if variant.interleaved > 1:
        shuffle_permuted_loads.mark(sch)
    if variant.stream:
        nontemporal_stores.mark(sch)
    strips = variant.order == "strips"
    copy = sch.cache_write(sch.get_sblock("out"), 0, "local") if strips else None
    loops = _out_loops(sch, spec, variant, decide)
    task, at, inner = loops.task, loops.tile, loops.positions_filters
    if strips:
        sch.reverse_compute_at(copy, loops.strip, preserve_unit_loops=True)
        stream_contiguous_runs.mark(sch, *sch.get_loops(copy)[-3:], past_caches=variant.stream)
    if spec.data_format == CHANNELS_LAST and variant.interleaved == 1:
        sch.compute_inline(sch.get_sblock("tile"))
        hi, wi, f = inner
        vectors, lanes = sch.split(f, [None, variant.lanes])
        unroll(sch, (hi, wi, vectors))
        sch.vectorize(lanes)
    else:
        _store_through_stack(sch, spec, variant, inner, at)
    conv = place(sch, "conv", at)
    skip_padding_taps.mark(
        sch, spec, dict(enumerate(sch.get_loops(conv)[-4 : -3 if variant.rows > 1 else -2])), {0: 3, 1: 4}
    )
    _, _, hi, _, wi, vectors, lanes, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-11:]
    skip_missing_taps.mark(sch, spec, (tap_d, tap_h, tap_w), 1)
    outer, few = decide.tile("unroll", channel, default=1, limit=8)
    sch.unroll(few)
    if variant.unroll_taps:
        sch.unroll(tap_w)
        reduction = (tap_d, tap_h, outer, few, tap_w)
    else:
        reduction = (tap_d, tap_h, tap_w, outer, few)
    keep_in_registers(sch, conv, reduction, (hi, wi, vectors, lanes))
    if variant.gather == "none" and prefetch.pays(spec):
        insert_prefetch.mark(sch, task, few, spec, insert_prefetch.POSITIONS, (variant.rows, variant.columns))
    if variant.gather != "none":
        _gather(sch, spec, variant, task)


class _Loops(NamedTuple):
    """Loops around the output: over tasks, strips of a task, register tiles, and the loops inside a tile."""

    task: LoopRV
    strip: LoopRV
    tile: LoopRV
    positions_filters: tuple[LoopRV, LoopRV, LoopRV]


def _out_loops(sch: Schedule, s: CanonicalSpec, variant: DirectVariant, decide: Decisions) -> _Loops:
    """Tiles the output."""
    if s.data_format == CHANNELS_LAST:
        n, d, h, w, g, f = sch.get_loops(sch.get_sblock("out"))
    else:
        n, g, f, d, h, w = sch.get_loops(sch.get_sblock("out"))
    row_tiles, hi = sch.split(h, [None, variant.rows])
    column_tiles, wi = sch.split(w, [None, variant.columns])
    if s.set_filters * variant.interleaved <= variant.vectors * variant.lanes:
        block, fi = sch.split(f, [1, None], preserve_unit_iters=True)
    else:
        block, fi = sch.split(f, [None, variant.vectors * variant.lanes])
    d_task, d_in = decide.tile("depth", d, default=1)
    h_task, h_in = decide.tile("rows", row_tiles, default=4)
    w_task, w_in = decide.tile("columns", column_tiles, default=16)
    task = [n, d_task, h_task, w_task]
    inner = (hi, wi, fi) if s.data_format == CHANNELS_LAST else (fi, hi, wi)
    strip = None
    if variant.order == "filters_spatial":
        sch.reorder(*task, g, block, d_in, h_in, w_in, *inner)
        at = w_in
    elif variant.order == "filters_parallel":
        task = [g, block, *task]
        sch.reorder(*task, d_in, h_in, w_in, *inner)
        at = w_in
    else:
        if variant.order == "strips":
            strip, w_in = decide.tile("strip", w_in, default=1)
        sch.reorder(*task, d_in, h_in, *([strip] if strip else []), w_in, g, block, *inner)
        at = block
    parallel = sch.fuse(*task)
    sch.parallel(parallel)
    return _Loops(parallel, strip, at, (hi, wi, fi))


def _store_through_stack(
    sch: Schedule, s: CanonicalSpec, variant: DirectVariant, inner: tuple[LoopRV, LoopRV, LoopRV], at: LoopRV
) -> None:
    """Leaves a tile as whole vectors on the stack, from where the store takes rows, or the lanes of groups in order."""
    hi, wi, f = inner
    if s.data_format != CHANNELS_LAST and variant.interleaved == 1:
        # positions of a phase do not lie side by side
        transpose_sums(sch, at, wi, s.out_size[2] if s.phases[2] == 1 else None)
        return
    tile = place(sch, "tile", at)
    _, _, rows, _, columns, vectors, lanes = sch.get_loops(tile)[-7:]
    unroll(sch, (rows, columns, vectors))
    sch.vectorize(lanes)
    if s.data_format != CHANNELS_LAST:
        sch.vectorize(wi)
    else:
        # each vector by itself, its lanes brought back in order
        unroll(sch, (hi, wi))
        store_in_order(sch, f, variant.lanes)


def _gather(sch: Schedule, s: CanonicalSpec, variant: DirectVariant, task: LoopRV) -> None:
    block = sch.get_sblock("gather")
    if variant.gather == "task":
        sch.compute_at(block, task, preserve_unit_loops=True)
    loops = sch.get_loops(block)
    *outer, width, g, c = loops if variant.interleaved == 1 else loops[:-1]
    if variant.gather == "root":
        sch.parallel(sch.fuse(*outer))
    if variant.interleaved > 1:
        gather_interleaved(sch, c, loops[-1])
    elif s.data_format != CHANNELS_LAST:
        sch.reorder(g, c, width)
        transpose_copies.mark(sch, sch.fuse(g, c), width)
    else:
        channels = sch.fuse(g, c)
        if int(sch.get(channels).extent) % variant.lanes == 0:
            vectorize_copy(sch, channels, variant.lanes)
