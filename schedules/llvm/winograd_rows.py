"""Design space of Winograd's convolution along rows on a CPU.

A task is a box of output depths, rows and tiles of a row. For one block of filters after the other it transforms the
positions it reads into one image for each frequency, then computes register tile after register tile: the products of
all frequencies, which stay in L1, and their inverse transform.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.winograd_rows import WinogradRowsVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import BlockRV, in_registers, keep_in_registers, unroll
from tvm_conv3d.schedules.llvm.passes import (
    mask_output_tail,
    nontemporal_stores,
    transpose_copies,
    vectorize_row_stores,
)
from tvm_conv3d.spec import CHANNELS_LAST

#: Multiply-adds of a register tile up to which the taps of height and the channels are unrolled beside it.
_MAX_UNROLLED = 128


def apply(sch: Schedule, spec: CanonicalSpec, variant: WinogradRowsVariant, decide: Decisions) -> None:
    """Schedules `compute.winograd_rows.declare(spec, variant)`.

    Decisions: `depth`: output depths for which a frequency is computed before the next one.
    """
    mask_output_tail.mark(sch)
    if variant.stream:
        nontemporal_stores.mark(sch)
    block, depths, depth = _output(sch, variant, decide)
    _product(sch, spec, variant, depths)
    _input(sch, spec, variant, block)
    _store(sch, spec, variant, depth)
    _flags(sch, block, depth)


def _output(sch: Schedule, variant: WinogradRowsVariant, decide: Decisions) -> tuple[LoopRV, LoopRV, LoopRV]:
    """The inverse transform and the loops around all: those of blocks of filters, some depths, one depth."""
    stage = sch.get_sblock("output")
    n, gd, gh, gw, block, d, ho, hi, wo, wi, o, lane = sch.get_loops(stage)
    depths, depth = decide.tile("depth", d, default=1, limit=8)
    sch.reorder(n, gd, gh, gw, block, wo, ho, depths, depth, hi, wi, o, lane)
    if variant.parallel_blocks:
        task = block = sch.fuse(n, gd, gh, gw, block)
    else:
        task = sch.fuse(n, gd, gh, gw)
    sch.parallel(task)
    unroll(sch, (hi, wi, o))
    sch.vectorize(lane)
    return block, depths, depth


def _product(sch: Schedule, s: CanonicalSpec, variant: WinogradRowsVariant, depths: LoopRV) -> None:
    """For each frequency a convolution without taps along the width."""
    block = sch.get_sblock("product")
    sch.compute_at(block, depths, preserve_unit_loops=True)
    _, _, _, hi, _, wi, lane, tap_d, tap_h, channel = sch.get_loops(block)[-10:]
    if s.kernel[1] * s.group_channels * variant.rows * variant.columns <= _MAX_UNROLLED:
        unroll(sch, (tap_h, channel))
    store = sch.cache_write(block, 0, "local")
    depth = sch.get_loops(block)[-9]
    sch.reverse_compute_at(store, depth, preserve_unit_loops=True)
    loops = sch.get_loops(store)[-5:]
    unroll(sch, loops[:-1])
    sch.vectorize(loops[-1])
    keep_in_registers(sch, block, (tap_d, channel, tap_h), (hi, wi, lane))


def _input(sch: Schedule, s: CanonicalSpec, variant: WinogradRowsVariant, at: LoopRV) -> None:
    """The copy of a row's positions and its transform, for one row after the other."""
    block = sch.get_sblock("input")
    sch.compute_at(block, at, preserve_unit_loops=True)
    frequency, d, h, t, channel, lane = sch.get_loops(block)[-6:]
    in_registers(sch, [d, h, t, channel], frequency, lane)
    gather = sch.get_sblock("gather")
    sch.compute_at(gather, h, preserve_unit_loops=True)
    width, channel, lane = sch.get_loops(gather)[-3:]
    if s.data_format != CHANNELS_LAST:
        sch.reorder(channel, lane, width)
        transpose_copies.mark(sch, lane, width)
    elif s.filters % variant.lanes == 0:
        sch.vectorize(lane)


def _store(sch: Schedule, s: CanonicalSpec, variant: WinogradRowsVariant, depth: LoopRV) -> None:
    last = s.data_format == CHANNELS_LAST
    if not last:
        transposed = sch.get_sblock("transposed")
        sch.reverse_compute_at(transposed, depth, preserve_unit_loops=True)
        sch.set_scope(transposed, 0, "local")
        lane, w = sch.get_loops(transposed)[-2:]
        transpose_copies.mark(sch, w, lane)
    block = sch.get_sblock("out")
    sch.reverse_compute_at(block, depth, preserve_unit_loops=True)
    if not last:
        _, hi, _, lane, w = sch.get_loops(block)[-5:]
        sch.reorder(lane, hi, w)
        vectorize_row_stores.mark(sch, w, s.out_size[2])
    else:
        sch.vectorize(sch.get_loops(block)[-1])


def _flags(sch: Schedule, block: LoopRV, depth: LoopRV) -> None:
    """Sums for each register tile while they are in L1, and of these for each task."""
    for name, at, over in (("seen", depth, 3), ("flags", block, 3)):
        stage = sch.get_sblock(name)
        sch.reverse_compute_at(stage, at, preserve_unit_loops=True)
        lane, *reduction = sch.get_loops(stage)[-1 - over :]
        _sum_of_vectors(sch, stage, lane, reduction)


def _sum_of_vectors(sch: Schedule, block: BlockRV, lane: LoopRV, reduction: Sequence[LoopRV]) -> None:
    sch.reorder(*reduction, lane)
    sch.vectorize(lane)
    sch.vectorize(sch.get_loops(sch.decompose_reduction(block, reduction[0]))[-1])
