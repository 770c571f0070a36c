"""Design space of the gradient of weights on a CPU.

A task owns a chunk of the boxes of output positions, some channels and filters, and mostly one depth of taps. Box by
box it copies what it reads, and adds to all of its sums: those of a register tile are made in registers over the box.
So the box stays in the second cache while the tiles take turns, and the task's sums likewise.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.weight_gradient import WeightGradientVariant
from tvm_conv3d.compute.shared.argument import OUT
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, unroll, vectorize_copy
from tvm_conv3d.schedules.llvm.passes import mask_output_tail, transpose_copies
from tvm_conv3d.spec import CHANNELS_LAST


def apply(sch: Schedule, spec: CanonicalSpec, variant: WeightGradientVariant, decide: Decisions) -> None:
    """Schedules `compute.weight_gradient.declare(spec, variant)`.

    Decisions: `channels`, `filters`: register tiles of a task.
    """
    sums = sch.get_sblock("sums")
    chunk, group, tap_d, tap_h, tap_w, channels, filters, channel, vector, lane, box = sch.get_loops(sums)
    channel_task, channels = decide.tile("channels", channels, default=4)
    filter_task, filters = decide.tile("filters", filters, default=4)
    taps = {"one": [], "row": [tap_w], "plane": [tap_h, tap_w]}[variant.taps]
    around = [tap for tap in (tap_h, tap_w) if tap not in taps]
    tile = [*taps, channel, vector, lane]
    tasks = [chunk, group, channel_task, filter_task]
    # a task of repeated channels has all taps, as its copy takes longer
    (around if variant.repeated else tasks).insert(0, tap_d)
    sch.reorder(*tasks, box, *around, channels, filters, *tile)
    task = sch.fuse(*tasks)
    sch.parallel(task)
    part = place(sch, "part", filters)
    _, tap_h, tap_w, _, _, channel, vector, lanes, *positions = sch.get_loops(part)[-11:]
    keep_in_registers(sch, part, positions, (tap_h, tap_w, channel, vector, lanes))
    unroll(sch, tile[:-1])
    sch.vectorize(lane)
    if variant.copy_input:
        _copy_input(sch, spec, variant, box)
    if variant.copy_gradient:
        _copy_gradient(sch, spec, box)
    sch.decompose_reduction(sums, box)
    _store(sch, variant)
    if spec.bias:
        _bias(sch, spec, variant)


def _copy_input(sch: Schedule, spec: CanonicalSpec, variant: WeightGradientVariant, box: LoopRV) -> None:
    copy = sch.get_sblock("inputs")
    sch.compute_at(copy, box, preserve_unit_loops=True)
    *_, width, group, channel = sch.get_loops(copy)
    if variant.repeated:
        whole = spec.filters % (variant.vectors * variant.lanes) == 0
        if spec.group_filters == 1 and whole and spec.data_format == CHANNELS_LAST:
            sch.vectorize(channel)
    elif spec.data_format == CHANNELS_LAST:
        vectorize_copy(sch, sch.fuse(group, channel), variant.lanes)
    else:
        sch.reorder(group, channel, width)
        transpose_copies.mark(sch, sch.fuse(group, channel), width)


def _copy_gradient(sch: Schedule, spec: CanonicalSpec, box: LoopRV) -> None:
    copy = sch.get_sblock("gradients")
    sch.compute_at(copy, box, preserve_unit_loops=True)
    *_, width, group, tile, vector, lane = sch.get_loops(copy)
    if spec.data_format == CHANNELS_LAST:
        sch.vectorize(lane)
    else:
        sch.reorder(group, tile, vector, lane, width)
        transpose_copies.mark(sch, sch.fuse(group, tile, vector, lane), width)


def _store(sch: Schedule, variant: WeightGradientVariant) -> None:
    *rows, group, filters = sch.get_loops(sch.get_sblock(OUT))
    if variant.repeated:
        filters = sch.fuse(group, filters)
    _, lane = sch.split(filters, [None, variant.lanes])
    sch.parallel(sch.fuse(*rows))
    sch.vectorize(lane)
    mask_output_tail.mark(sch)


def _bias(sch: Schedule, spec: CanonicalSpec, variant: WeightGradientVariant) -> None:
    chunk, box, group, filters, *positions = sch.get_loops(sch.get_sblock("bias_part"))
    sch.parallel(sch.fuse(chunk, box))
    if spec.data_format == CHANNELS_LAST:
        vectors, lane = sch.split(filters, [None, variant.lanes])
        sch.reorder(group, vectors, *positions, lane)
        sch.vectorize(lane)
        sch.decompose_reduction(sch.get_sblock("bias_part"), positions[0])
