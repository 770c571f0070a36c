"""Design space of the grouped and depthwise convolution on a CPU.

A task owns a box of output cells of one or all blocks of filters. For each block it copies the cells it reads into a
buffer of its own, one vector a cell, and computes register tiles in which a row's taps are unrolled, so that a loaded
cell serves all the columns whose windows hold it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.compute.grouped import GroupedVariant
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.schedules.llvm import skip_padding, stream_stores, transpose
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, turn, unroll
from tvm_conv3d.schedules.llvm.tile_rule import TASKS_PER_THREAD, fitting_lanes, task_box, tasks
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec
from tvm_conv3d.targets import CpuTraits

#: Columns of a tile: wider ones run out of registers beside the unrolled taps.
_MOST_COLUMNS = 8

#: Taps of a row times channels of a group up to which both are unrolled.
_MOST_UNROLLED = 32


def default(spec: Conv3DSpec, traits: CpuTraits) -> tuple[GroupedVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where a group fills whole vectors."""
    s = collapse(spec)
    if s.groups == 1 or s.group_filters >= traits.lanes(s.accumulator):
        return None
    lanes = fitting_lanes(traits, s.accumulator, s.filters)
    width = s.out_size[2]
    most = _MOST_COLUMNS if traits.registers >= 32 else _MOST_COLUMNS // 2
    # overhanging columns are wasted; the taps' weights are loaded once a tile
    columns = min(range(1, min(most, width) + 1), key=lambda c: -(-width // c) * (c + 1))
    depth, rows, column_tiles = task_box(
        s, traits, (1, columns), s.group_channels * lanes * np.dtype(s.accumulator).itemsize
    )
    few_tasks = tasks(s, (1, columns), (depth, rows, column_tiles)) < TASKS_PER_THREAD * traits.cores
    variant = GroupedVariant(lanes, 1, columns, parallel_blocks=few_tasks and s.filters > lanes)
    return variant, {"depth": depth, "rows": rows, "columns": column_tiles}


def variants(spec: Conv3DSpec, traits: CpuTraits) -> list[GroupedVariant]:
    """The variants that compete while tuning, the default first; none where a group fills whole vectors."""
    found = default(spec, traits)
    if found is None:
        return []
    first, _ = found
    _, height, width = collapse(spec).out_size
    most = max(1, min(width, traits.registers // 2))
    by_waste = sorted(range(1, most + 1), key=lambda columns: (-(-width // columns) * columns, -columns))
    tiles = [first, *(replace(first, columns=columns) for columns in by_waste[:5])]
    if height > 1:
        tiles += [replace(first, rows=2, columns=columns) for columns in by_waste if columns <= most // 2][:2]
    both = [replace(tile, parallel_blocks=parallel) for parallel in (first.parallel_blocks, True) for tile in tiles]
    different = dict.fromkeys(both if collapse(spec).filters > first.lanes else tiles)
    return [*different, *stream_stores.streaming(spec, [first], first.lanes)]


def finish(module: IRModule, spec: Conv3DSpec) -> IRModule:
    """What is changed after scheduling: taps that see only padding are skipped."""
    return skip_padding.guard(module, collapse(spec), {0: 2, 1: 3})


def apply(sch: Schedule, spec: Conv3DSpec, variant: GroupedVariant, decide: Decisions) -> None:
    """Schedules `compute.grouped.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output cells of a task, the latter two in register tiles.
    """
    s = collapse(spec)
    last = s.data_format == CHANNELS_LAST
    if last:
        n, d, h, w, f = sch.get_loops(sch.get_sblock("out"))
    else:
        n, f, d, h, w = sch.get_loops(sch.get_sblock("out"))
    row_tiles, hi = sch.split(h, [None, variant.rows])
    column_tiles, wi = sch.split(w, [None, variant.columns])
    block, lane = sch.split(f, [None, variant.lanes])
    d_task, d_in = decide.tile("depth", d, default=1)
    h_task, h_in = decide.tile("rows", row_tiles, default=4)
    w_task, w_in = decide.tile("columns", column_tiles, default=16)
    inner = (hi, wi, lane) if last else (lane, hi, wi)
    sch.reorder(n, d_task, h_task, w_task, block, d_in, h_in, w_in, *inner)
    if variant.parallel_blocks:
        task = copy_at = sch.fuse(n, d_task, h_task, w_task, block)
    else:
        task, copy_at = sch.fuse(n, d_task, h_task, w_task), block
    sch.parallel(task)

    if last and s.filters % variant.lanes == 0:
        sch.compute_inline(sch.get_sblock("tile"))
        unroll(sch, (hi, wi))
        sch.vectorize(lane)
    elif last:
        tile = place(sch, "tile", w_in)
        _, rows, _, columns, lanes = sch.get_loops(tile)[-5:]
        unroll(sch, (rows, columns))
        sch.vectorize(lanes)
    else:
        turn(sch, w_in, wi, s.out_size[2])
    conv = place(sch, "conv", w_in)
    _, hi, _, wi, lanes, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-9:]
    if variant.rows == 1:
        skip_padding.mark(sch, s, {0: tap_d, 1: tap_h})
    if s.kernel[2] * s.group_channels <= _MOST_UNROLLED:
        unroll(sch, (channel, tap_w))
    keep_in_registers(sch, conv, (tap_d, tap_h, channel, tap_w), (hi, wi, lanes))
    gather = sch.get_sblock("gather")
    sch.compute_at(gather, copy_at, preserve_unit_loops=True)
    width, channel, lane = sch.get_loops(gather)[-3:]
    if not last:
        sch.reorder(channel, lane, width)
        transpose.mark(sch, lane, width)
    elif s.filters % variant.lanes == 0:
        sch.vectorize(lane)
