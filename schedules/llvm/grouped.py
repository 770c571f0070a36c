"""Design space of the grouped and depthwise convolution on a CPU.

A task owns a box of output positions of one or all blocks of filters. For each block it copies the positions it reads
into a buffer of its own, one vector a position (of groups of several channels that are not shuffled: one for each of a
group's channels), and computes register tiles in which a row's taps are unrolled, so that a loaded position serves all
the columns whose windows hold it.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.grouped import GroupedVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, transpose_sums, unroll
from tvm_conv3d.schedules.llvm.passes import (
    nontemporal_stores,
    shuffle_permuted_loads,
    skip_padding_taps,
    transpose_copies,
)
from tvm_conv3d.spec import CHANNELS_LAST

#: Taps of a row times channels of a group up to which both are unrolled.
_MAX_UNROLLED = 32


def apply(sch: Schedule, spec: CanonicalSpec, variant: GroupedVariant, decide: Decisions) -> None:
    """Schedules `compute.grouped.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output positions of a task, the latter two in register tiles.
    """
    last = spec.data_format == CHANNELS_LAST
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
    if variant.shuffled:
        shuffle_permuted_loads.mark(sch)
    if variant.stream:
        nontemporal_stores.mark(sch)

    if last and spec.filters % variant.lanes == 0:
        sch.compute_inline(sch.get_sblock("tile"))
        unroll(sch, (hi, wi))
        sch.vectorize(lane)
    elif last:
        tile = place(sch, "tile", w_in)
        _, rows, _, columns, lanes = sch.get_loops(tile)[-5:]
        unroll(sch, (rows, columns))
        sch.vectorize(lanes)
    else:
        transpose_sums(sch, w_in, wi, spec.out_size[2])
    conv = place(sch, "conv", w_in)
    _, hi, _, wi, lanes, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-9:]
    if variant.rows == 1:
        skip_padding_taps.mark(sch, spec, {0: tap_d, 1: tap_h}, {0: 2, 1: 3})
    along_row = (channel, tap_w)
    if spec.kernel[2] * spec.group_channels <= _MAX_UNROLLED:
        unroll(sch, along_row)
    elif variant.shuffled:
        # an exchange of lanes is part of the code
        along_row = (tap_w, channel)
        sch.unroll(channel)
    keep_in_registers(sch, conv, (tap_d, tap_h, *along_row), (hi, wi, lanes))
    gather = sch.get_sblock("gather")
    sch.compute_at(gather, copy_at, preserve_unit_loops=True)
    width, channel, lane = sch.get_loops(gather)[-3:]
    if not last:
        sch.reorder(channel, lane, width)
        transpose_copies.mark(sch, lane, width)
    elif spec.filters % variant.lanes == 0:
        sch.vectorize(lane)
