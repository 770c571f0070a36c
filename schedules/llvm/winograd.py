"""Design space of the Winograd convolution on a CPU.

A task is one group of neighbouring tiles. All its intermediates are its own and stay in its core's cache: the gathered
positions, the transformed input, the products of all frequencies, the inverse transforms. Only the transformed weights
stream through, once for each task.

Staged, there are tasks of three kinds, one after the other: the input's transforms of a group of tiles, the products of
one frequency, whose weights stay in the core's cache, and the inverse transforms of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.winograd import WinogradVariant, side_by_side, transposes_sums
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.compute.shared.winograd_axes import axes_of
from tvm_conv3d.compute.shared.winograd_stages import gathered_chunks
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import (
    gather_interleaved,
    in_registers,
    keep_in_registers,
    store_in_order,
    transpose_sums,
    unroll,
    vectorize_copy,
)
from tvm_conv3d.schedules.llvm.costs import prefetch
from tvm_conv3d.schedules.llvm.costs.winograd import _streamable
from tvm_conv3d.schedules.llvm.costs.winograd_cost import packed_bytes
from tvm_conv3d.schedules.llvm.passes import (
    copy_channel_chunks,
    mask_output_tail,
    nontemporal_stores,
    prefetch_weights,
    shuffle_permuted_loads,
    transpose_copies,
)
from tvm_conv3d.spec import CHANNELS_LAST

#: Groups of tiles in one task of a staged product, at most.
MAX_GROUPS = 64


def apply(sch: Schedule, spec: CanonicalSpec, variant: WinogradVariant, decide: Decisions) -> None:
    """Schedules `compute.winograd.declare(spec, variant)`.

    Decisions: `unroll`: channels per step of the product; `groups`, where staged: groups of tiles of one product task.

    Raises:
        ValueError: the variant streams vectors that hold several groups.
    """
    if variant.stream and not _streamable(spec, variant):
        raise ValueError(f"Vectors of several groups of {spec.key()} can't be streamed. Received: {variant}")
    mask_output_tail.mark(sch)
    if variant.interleaved > 1:
        shuffle_permuted_loads.mark(sch)
    if variant.stream:
        nontemporal_stores.mark(sch)
    transformed = [n > 1 for n in axes_of(spec, variant.modes).cells(variant.tile)]
    task = _tasks(sch, spec, variant)
    outputs = [(axis, name) for axis, name in enumerate(("output_d", "output_h", "output_w")) if transformed[axis]]
    for _, name in reversed(outputs):
        sch.compute_at(sch.get_sblock(name), task, preserve_unit_loops=True)
    if variant.staged:
        task = _tasks_of_input(sch)
    else:
        sch.compute_at(sch.get_sblock("product"), task, preserve_unit_loops=True)
        sch.compute_at(sch.get_sblock("input_d"), task, preserve_unit_loops=True)
    _transform_input(sch, variant, transformed)
    for axis, name in outputs:
        block = sch.get_sblock(name)
        *positions, t, f, lane = sch.get_loops(block)[-6:]
        row = positions.pop(axis)
        in_registers(sch, [*positions, t, f], row, lane)
    _gather(sch, spec, variant, task)
    channel = _product(sch, variant, decide)
    if not variant.staged and prefetch.weights_pay(packed_bytes(spec, variant)):
        prefetch_weights.mark(sch, task, channel)
    _flags(sch)


def _tasks(sch: Schedule, s: CanonicalSpec, variant: WinogradVariant) -> LoopRV:
    """Cuts the output into groups of tiles; returns the parallel loop over them."""
    last = s.data_format == CHANNELS_LAST
    loops = sch.get_loops(sch.get_sblock("out"))
    n, *positions, f = loops if last else (loops[0], *loops[2:], loops[1])
    parted: list[LoopRV] = []
    groups: list[LoopRV] = []
    inner: list[LoopRV] = []
    for parts, m, b in zip(axes_of(s, variant.modes).parts, variant.tile, variant.block, strict=True):
        group, position = sch.split(positions.pop(0), [None, m * b])
        if parts > 1:
            parted.append(positions.pop(0))
        groups.append(group)
        inner.append(position)
    outer = [n, *parted, *groups]
    # channels_first: a row of one filter after the other, from sums that stay in L1 meanwhile
    sch.reorder(*outer, *((*inner, f) if last else (*inner[:2], f, inner[2])))
    if last and variant.interleaved > 1:
        store_in_order(sch, sch.split(f, [None, FilterPacking.of(s, variant).shared_filters])[1], variant.lanes)
    elif last and s.groups == 1:
        sch.vectorize(sch.split(f, [None, variant.lanes])[1])
    elif last:
        vectorize_copy(sch, f, variant.lanes)
    # two stages read the sums: both must run in the same task
    same = sch.get_loops(sch.get_sblock("flags"))[: len(outer)]
    task = sch.merge(sch.fuse(*outer), sch.fuse(*same))
    sch.parallel(task)
    if transposes_sums(s, variant):
        _turn(sch, s, variant)
    return task


def _turn(sch: Schedule, s: CanonicalSpec, variant: WinogradVariant) -> None:
    """Transposes the sums of a vector of filters, one row of positions, then stores its rows."""
    f, w = sch.get_loops(sch.get_sblock("out"))[-2:]
    if s.groups > 1:
        # each group has vectors of its own
        _, f = sch.split(f, [None, s.group_filters])
    vector, _ = sch.split(f, [None, variant.lanes if s.groups == 1 else min(s.group_filters, variant.lanes)])
    parts = axes_of(s, variant.modes).parts[2]
    transpose_sums(sch, vector, w, s.out_size[2] if parts == 1 else None)


def _tasks_of_input(sch: Schedule) -> LoopRV:
    """Makes the input's transforms of a group of tiles a task; returns the parallel loop."""
    loops = sch.get_loops(sch.get_sblock("input_d"))
    task = sch.fuse(*loops[:-6])
    sch.parallel(task)
    return task


def _transform_input(sch: Schedule, variant: WinogradVariant, transformed: Sequence[bool]) -> None:
    """Transforms a row of tiles, one vector of channels after the other: the steps in between stay in L1."""
    block = sch.get_sblock("input_d")
    loops = sch.get_loops(block)
    e, y, x, c, t, lane = loops[-6:]
    t_d, t_h, t_w = sch.split(t, list(variant.block), preserve_unit_iters=True)
    sch.reorder(t_d, t_h, c, y, x, t_w)
    if transformed[0]:
        in_registers(sch, [t_d, t_h, c, y, x, t_w], e, lane)
    else:
        sch.reorder(t_d, t_h, c, e, y, x, t_w, lane)
        sch.vectorize(lane)
    for axis, name in ((1, "input_h"), (2, "input_w")):
        if transformed[axis]:
            stage = sch.get_sblock(name)
            sch.compute_at(stage, c, preserve_unit_loops=True)
            # input_w has a row of positions where input_h has a tile and a frequency
            first, second, row, *others, channel, lane = sch.get_loops(stage)[-7 if axis == 1 else -6 :]
            in_registers(sch, [first, second, *others, channel], row, lane)


def _gather(sch: Schedule, s: CanonicalSpec, variant: WinogradVariant, task: LoopRV) -> None:
    block = sch.get_sblock("gather")
    sch.compute_at(block, task, preserve_unit_loops=True)
    width, channels = sch.get_loops(block)[-2:]
    if variant.interleaved > 1:
        _, channel, each = sch.split(channels, [None, s.group_channels, variant.interleaved])
        gather_interleaved(sch, channel, each)
    elif s.data_format != CHANNELS_LAST:
        vector, lane = sch.split(channels, [None, variant.lanes])
        sch.reorder(vector, width)
        transpose_copies.mark(sch, lane, width)
    elif side_by_side(s, variant) % variant.lanes == 0:
        vectorize_copy(sch, channels, variant.lanes)
    elif s.groups == 1:
        copy_channel_chunks.mark(sch, channels, *gathered_chunks(s, axes_of(s, variant.modes)))


def _product(sch: Schedule, variant: WinogradVariant, decide: Decisions) -> LoopRV:
    """For each frequency a matrix product on register tiles of `columns` tiles by `vectors` vectors of filters.

    Returns the loop over the channels of a step.
    """
    block = sch.get_sblock("product")
    *groups, e, y, x, f, t, lane, channel = sch.get_loops(block)
    if variant.staged:
        outer, inner = decide.tile("groups", sch.fuse(*groups), default=MAX_GROUPS, limit=MAX_GROUPS)
        sch.reorder(e, y, x, outer, inner)
        sch.parallel(sch.fuse(e, y, x, outer))
    f_out, f_in = sch.split(f, [None, variant.vectors])
    t_out, t_in = sch.split(t, [None, variant.columns])
    outer, few = decide.tile("unroll", channel, default=1, limit=8)
    if not variant.staged:
        sch.reorder(e, y, x, f_out)
    sch.reorder(f_out, t_out, outer, few, t_in, f_in, lane)
    sch.unroll(few)
    store = sch.cache_write(block, 0, "local")
    sch.reverse_compute_at(store, t_out, preserve_unit_loops=True)
    loops = sch.get_loops(store)[-3:]
    unroll(sch, loops[:-1])
    sch.vectorize(loops[-1])
    keep_in_registers(sch, block, (outer, few), (t_in, f_in, lane))
    return few


def _flags(sch: Schedule) -> None:
    block = sch.get_sblock("flags")
    beside, lane, *reduction = sch.get_loops(block)[-6:]
    keep_in_registers(sch, block, reduction, (beside, lane))
