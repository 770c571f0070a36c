"""Design space of the direct convolution on a CPU.

A task owns a box of output cells; it copies the cells it reads, zeros included, into a buffer of its own, then computes
one register tile after the other. The sums of a tile stay in registers over all taps and channels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.compute.direct import DirectVariant, needs_gather
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import (
    gather_in_turns,
    keep_in_registers,
    place,
    store_in_order,
    turn,
    unroll,
    vectorize_copy,
)
from tvm_conv3d.schedules.llvm.rewrites import (
    overhang,
    permuted_loads,
    pipeline,
    prefetch,
    runs,
    skip_padding,
    skip_taps,
    stream_stores,
    transpose,
)
from tvm_conv3d.schedules.llvm.rules import store_rule
from tvm_conv3d.schedules.llvm.rules.tile_rule import (
    Tile,
    best_tile,
    good_tiles,
    sharings,
    task_box,
    tasks,
    tiles_of,
    worthwhile_sharing,
)
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.targets import CpuTraits

#: Taps of a row times channels up to which they are unrolled beside the tile.
FEW_CHANNELS = 12

#: Register tiles that compete while tuning.
MOST_TILES = 8

#: Ways of sharing vectors among groups that do.
MOST_SHARINGS = 3

ORDERS = ("filters_spatial", "spatial_filters", "filters_parallel")


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[DirectVariant, dict[str, int]]:
    """The variant and the decisions taken where nothing was tuned."""
    few_channels = _unrolls_taps(spec) and spec.group_channels * spec.kernel[2] <= FEW_CHANNELS
    sharing = worthwhile_sharing(spec, traits)
    tile = best_tile(spec, traits, spec.set_filters, spec.kernel[2] if few_channels else 1, sharing)
    by_rows = few_channels and spec.data_format != CHANNELS_LAST and tile.interleaved == 1
    if by_rows:
        # little is computed and much stored: whole vectors along the rows of one vector of filters
        columns = min(tile.lanes, spec.out_size[2], traits.registers // 2)
        tile = replace(tile, vectors=1, rows=1, columns=columns)
    variant = DirectVariant(
        tile.lanes, tile.vectors, tile.rows, tile.columns, unroll_taps=few_channels, interleaved=tile.interleaved
    )
    if not needs_gather(spec, variant):
        variant = replace(variant, gather="none")
    cells = (tile.rows, tile.columns)
    item = np.dtype(spec.accumulator).itemsize
    box = task_box(spec, traits, cells, spec.channels * item)
    decisions = {"unroll": spec.group_channels if few_channels else 1}
    weights, inputs = (math.prod(shape) * item for shape in (spec.kernel_shape, spec.input_shape))
    # each task would read all weights from memory, while all of the input stays in cache
    weights_decide = weights > traits.l3 // 2 and inputs <= traits.l2 // 2
    if tasks(spec, cells, box) < 2 * traits.cores or weights_decide:
        box = tiles_of(spec, cells)
        variant = replace(variant, order="filters_parallel", gather="none" if variant.gather == "none" else "root")
    elif not by_rows and weights <= traits.l2 // 8:
        # all weights stay in cache: filters inside, so that outputs are written in the order they lie in memory
        variant = replace(variant, order="spatial_filters")
        if variant.interleaved == 1:
            variant, box, strip = store_rule.for_output(spec, traits, variant, box)
            decisions |= strip
    return variant, {"depth": box[0], "rows": box[1], "columns": box[2], **decisions}


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[DirectVariant]:
    """The variants that compete while tuning, the default first: tiles of low cost, then other orders and copies."""
    first, _ = default(spec, traits)
    sharing = worthwhile_sharing(spec, traits)
    taps = spec.kernel[2] if first.unroll_taps else 1
    few = good_tiles(spec, traits, spec.set_filters, taps, sharing, count=MOST_TILES)
    plain = replace(first, order="spatial_filters" if first.order == "strips" else first.order, stream=False)
    tiles = [_with_tile(plain, tile) for tile in few]
    orders = [replace(plain, order=order) for order in ORDERS]
    stores = stream_stores.streaming(spec, plain, first.lanes)
    if runs.competes(spec) and sharing is None:
        stores.append(store_rule.in_strips(plain))
    stores += store_rule.small_tiles(spec, plain)
    found = [first, *stores, *orders, *tiles[:4]]
    if needs_gather(spec, first):
        found += [replace(variant, gather="root" if variant.gather == "task" else "task") for variant in orders]
    # groups that share vectors in other ways, or do not
    others = [other for other in (*sharings(spec, traits)[:MOST_SHARINGS], None) if other != sharing]
    found += [_with_tile(plain, best_tile(spec, traits, spec.set_filters, taps, other)) for other in others]
    if _unrolls_taps(spec):
        narrow = best_tile(spec, traits, spec.set_filters, spec.kernel[2], sharing)
        found.append(
            replace(tiles[0], unroll_taps=False)
            if first.unroll_taps
            else replace(_with_tile(plain, narrow), unroll_taps=True)
        )
    found += tiles[4:]
    # without a copy only tiles that divide the output will do; a variant that needs none saves it
    gathers = [replace(v, gather=_fitting_gather(spec, v)) for v in found]
    return list(dict.fromkeys(gathers))


def _unrolls_taps(spec: CanonicalSpec) -> bool:
    """Whether taps of a row may be unrolled beside the tile: those that a phase lacks are skipped by their loop."""
    return spec.kernel[2] > 1 and not spec.phased


def _with_tile(variant: DirectVariant, tile: Tile) -> DirectVariant:
    return replace(
        variant,
        lanes=tile.lanes,
        vectors=tile.vectors,
        rows=tile.rows,
        columns=tile.columns,
        interleaved=tile.interleaved,
    )


def _fitting_gather(spec: CanonicalSpec, variant: DirectVariant) -> str:
    if not needs_gather(spec, variant):
        return "none"
    return "task" if variant.gather == "none" else variant.gather


def apply(sch: Schedule, spec: CanonicalSpec, variant: DirectVariant, decide: Decisions) -> None:
    """Schedules `compute.direct.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output cells of a task, the latter two in register tiles; `strip`, where
    there are strips: register tiles of one; `unroll`: channels per step of the reduction.
    """
    if spec.data_format == CHANNELS_LAST:
        overhang.mark(sch)
    if variant.interleaved > 1:
        permuted_loads.mark(sch)
    if variant.stream:
        stream_stores.mark(sch)
    strips = variant.order == "strips"
    copy = sch.cache_write(sch.get_sblock("out"), 0, "local") if strips else None
    loops = _out_loops(sch, spec, variant, decide)
    task, at, inner = loops.task, loops.tile, loops.cells_filters
    if strips:
        sch.reverse_compute_at(copy, loops.strip, preserve_unit_loops=True)
        runs.mark(sch, *sch.get_loops(copy)[-3:], past_caches=variant.stream)
    if spec.data_format == CHANNELS_LAST and variant.interleaved == 1:
        sch.compute_inline(sch.get_sblock("tile"))
        hi, wi, f = inner
        vectors, lanes = sch.split(f, [None, variant.lanes])
        unroll(sch, (hi, wi, vectors))
        sch.vectorize(lanes)
    else:
        _store_through_stack(sch, spec, variant, inner, at)
    conv = place(sch, "conv", at)
    skip_padding.mark(
        sch, spec, dict(enumerate(sch.get_loops(conv)[-4 : -3 if variant.rows > 1 else -2])), {0: 3, 1: 4}
    )
    _, _, hi, _, wi, vectors, lanes, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-11:]
    skip_taps.mark(sch, spec, (tap_d, tap_h, tap_w), 1)
    outer, few = decide.tile("unroll", channel, default=1, limit=8)
    sch.unroll(few)
    if variant.unroll_taps:
        sch.unroll(tap_w)
        reduction = (tap_d, tap_h, outer, few, tap_w)
    else:
        reduction = (tap_d, tap_h, tap_w, outer, few)
    keep_in_registers(sch, conv, reduction, (hi, wi, vectors, lanes))
    if variant.gather == "none" and prefetch.pays(spec):
        prefetch.mark(sch, task, few, spec, prefetch.CELLS, (variant.rows, variant.columns))
    if variant.gather != "none":
        _gather(sch, spec, variant, task)


def finish(module: IRModule, spec: CanonicalSpec) -> IRModule:
    """What is changed after scheduling: padding is skipped, the next input fetched, odd filters stored in part."""
    return pipeline.finished(module)


class _Loops(NamedTuple):
    """Loops around the output: over tasks, strips of a task, register tiles, and the loops inside a tile."""

    task: LoopRV
    strip: LoopRV
    tile: LoopRV
    cells_filters: tuple[LoopRV, LoopRV, LoopRV]


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
        # cells of a phase do not lie side by side
        turn(sch, at, wi, s.out_size[2] if s.phases[2] == 1 else None)
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
        gather_in_turns(sch, c, loops[-1])
    elif s.data_format != CHANNELS_LAST:
        sch.reorder(g, c, width)
        transpose.mark(sch, sch.fuse(g, c), width)
    else:
        channels = sch.fuse(g, c)
        if int(sch.get(channels).extent) % variant.lanes == 0:
            vectorize_copy(sch, channels, variant.lanes)
