"""Design space of the convolution on planes, on a CPU.

A task owns a box of output depths, rows and columns of one group; it copies the rows it reads, zeros included, into a
buffer of its own, or where each element is used for one tap makes the planes of a tile in registers. A register tile is
some vectors of some rows of some filters. Of one row, a vector of weights' values serves all its vectors; of several, a
loaded vector of input serves all rows whose windows hold it.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.llvm.planes import PlanesVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import Decisions, LoopRV
from tvm_conv3d.schedules.llvm.common import keep_in_registers, place, unroll
from tvm_conv3d.schedules.llvm.costs import prefetch
from tvm_conv3d.schedules.llvm.costs.planes import _in_registers, _in_rows
from tvm_conv3d.schedules.llvm.passes import (
    insert_prefetch,
    nontemporal_stores,
    skip_padding_taps,
    transpose_copies,
    vectorize_row_stores,
)
from tvm_conv3d.spec import CHANNELS_FIRST

#: Taps of a row times channels up to which the taps are unrolled.
_FEW = 12

#: Channels in one step of the reduction, at most.
_MAX_UNROLLED = 16


def apply(sch: Schedule, spec: CanonicalSpec, variant: PlanesVariant, decide: Decisions) -> None:
    """Schedules `compute.planes.declare(spec, variant)`.

    Decisions: `depth`, `rows`, `columns`: output positions of a task, the latter two in register tiles; `unroll`:
        channels
    per step of the reduction.
    """
    planes_lie = spec.data_format == CHANNELS_FIRST
    loops = sch.get_loops(sch.get_sblock("out"))
    n, g, f, d, h, w = loops if planes_lie else (loops[0], *loops[4:], *loops[1:4])
    row_tiles, hi = sch.split(h, [None, variant.rows], preserve_unit_iters=True)
    column_tiles, wi = sch.split(w, [None, variant.vectors * variant.lanes], preserve_unit_iters=True)
    block, fi = sch.split(f, [None, variant.filters], preserve_unit_iters=True)
    d_task, d_in = decide.tile("depth", d, default=1)
    h_task, h_in = decide.tile("rows", row_tiles, default=4)
    w_task, w_in = decide.tile("columns", column_tiles, default=16)
    positions, at = (d_in, h_in, w_in), w_in if variant.filters_first else block
    sch.reorder(
        n,
        g,
        d_task,
        h_task,
        w_task,
        *((block, *positions) if variant.filters_first else (*positions, block)),
        fi,
        hi,
        wi,
    )
    task = sch.fuse(n, g, d_task, h_task, w_task)
    sch.parallel(task)
    if variant.stream:
        nontemporal_stores.mark(sch)
    if _whole(spec, variant) and _in_rows(spec):
        sch.compute_inline(sch.get_sblock("tile"))
        vectors, lane = sch.split(wi, [None, variant.lanes], preserve_unit_iters=True)
        unroll(sch, (fi, hi, vectors))
        sch.vectorize(lane)
    else:
        *outer, lane = sch.get_loops(place(sch, "tile", at))[-4:]
        unroll(sch, outer)
        sch.vectorize(lane)
        unroll(sch, (fi, hi))
        if _in_rows(spec):
            vectorize_row_stores.mark(sch, wi, spec.out_size[2], padded=0 if spec.residual else variant.lanes)
        else:
            sch.reorder(wi, fi)
    few = _sums(sch, spec, variant, decide, at)
    if not variant.gather and prefetch.pays(spec):
        insert_prefetch.mark(
            sch, task, few, spec, insert_prefetch.PLANES, (variant.rows, variant.vectors * variant.lanes)
        )
    if variant.gather:
        gather = sch.get_sblock("gather")
        if _in_registers(spec):
            place(sch, "gather", at)
        else:
            sch.compute_at(gather, task, preserve_unit_loops=True)
        channel, *at_position, column = sch.get_loops(gather)[-5:]
        if planes_lie:
            transpose_copies.mark_copy(sch, column)
        else:
            sch.reorder(*at_position, column, channel)
            transpose_copies.mark(sch, column, channel)


def _sums(sch: Schedule, s: CanonicalSpec, variant: PlanesVariant, decide: Decisions, at: object) -> LoopRV:
    """The sums of a register tile; the innermost loop over channels."""
    conv = place(sch, "conv", at)
    *tile, tap_d, tap_h, tap_w, channel = sch.get_loops(conv)[-8:]
    outer, few = decide.tile("unroll", channel, default=1, limit=_MAX_UNROLLED)
    sch.unroll(few)
    if variant.rows > 1:
        skip_padding_taps.mark(sch, s, {0: tap_d}, {0: 3})
        reduction = (tap_d, outer, few, tap_w, tap_h)
        sch.unroll(tap_h)
    else:
        skip_padding_taps.mark(sch, s, {0: tap_d, 1: tap_h}, {0: 3, 1: 4})
        reduction = (tap_d, tap_h, outer, few, tap_w)
        if s.kernel[2] * s.group_channels <= _FEW:
            sch.unroll(tap_w)
    keep_in_registers(sch, conv, reduction, tile)
    return few


def _whole(s: CanonicalSpec, variant: PlanesVariant) -> bool:
    """Whether the output is made of whole register tiles."""
    sizes = (s.group_filters, *s.out_size[1:])
    of_tile = (variant.filters, variant.rows, variant.vectors * variant.lanes)
    return all(size % part == 0 for size, part in zip(sizes, of_tile, strict=True))
