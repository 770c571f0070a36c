"""Design space of the implicit matrix product on tensor cores.

A block of threads owns a tile of output positions by filters, each of its warps a smaller one, whose sums stay in
fragments over the whole reduction. They leave through shared memory, from where all threads finish and store them.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.tensor_gemm import EDGE, TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import (
    REGISTERS,
    BlockRV,
    LoopRV,
    add_parts,
    finish_tile,
    pipeline,
    reads_along_terms,
    spread_over_warps,
    unroll_by_pragma,
)
from tvm_conv3d.schedules.cuda.tensor_tile import SKEW, SKEW_OF_TURNED, sums_of_thread
from tvm_conv3d.schedules.cuda.turn import turn
from tvm_conv3d.schedules.cuda.wmma import LEAVE, register
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST

#: Words after which rows begin in the same bank.
_BANKS = 32

#: Tiles of positions whose blocks follow one another: the choices.
_NEAR_TILES = (1, 2, 4, 8, 16)

#: Sums in a thread's registers from which on its plan asks for all registers that a thread can have.
_MANY_SUMS = 128

#: Weights that one thread brings into shared memory at once: 16 bytes.
_WEIGHTS_AT_ONCE = 8


def apply(sch: Schedule, spec: CanonicalSpec, variant: TensorVariant, decide: Decisions) -> None:
    """Schedules `compute.tensor_gemm.declare(spec, variant)`.

    Decisions: `unroll`: depths of 16 terms that are unrolled; `near_tiles`: tiles of positions whose blocks follow one
    another for each tile of filters, so that they find both factors in the cache.
    """
    names = register(spec.dtype)
    if variant.warps_terms > 1:
        sch.compute_inline(sch.get_sblock("added"))
    block = _finish_together(sch, spec, variant, decide)
    if variant.turned:
        turn(sch, spec)
    sums = sch.get_sblock("product")
    sch.set_scope(sums, 0, "shared.dyn")
    leave = sch.cache_write(sums, 0, "wmma.accumulator")
    turned = spec.data_format != CHANNELS_LAST
    if turned:
        # neighbouring threads finish neighbouring positions
        sch.transform_layout(leave, ("write", 0), lambda *at: (*at[:-2], at[-1], at[-2]))
    if sums_of_thread(spec, variant) >= _MANY_SUMS:
        sch.annotate(block, REGISTERS, 255)
    warp, rows16 = _leave(sch, leave, block, variant)
    sch.compute_at(sums, warp, preserve_unit_loops=True)
    fused = variant.parts > 1 or variant.stages > 1
    i, j, *taps, step, term = sch.get_loops(sums)[-4 if fused else -7 :]
    (i, i16), (j, j16), (term, term16) = (sch.split(loop, [None, EDGE]) for loop in (i, j, term))
    outer, few = decide.tile("unroll", term, default=int(sch.get(term).extent))
    sch.unroll(few)
    sch.reorder(*taps, step, outer, few, i, j, i16, j16, term16)
    for loop in (i, j):
        sch.unroll(loop)
    rows_a, rows_b = _fetch(sch, spec, variant, sums, step, few)
    start = sch.decompose_reduction(sums, taps[0] if taps else step)
    if variant.stages > 1:
        pipeline(sch, step, variant.stages)
    # last, as nothing can be placed beside a block that has become an instruction
    instructions = {
        "fill": sch.get_loops(start)[-2],
        "load_a": rows_a,
        "load_b": rows_b,
        "multiply": i16,
        "store_turned" if turned else "store": rows16,
    }
    for purpose, loop in instructions.items():
        sch.tensorize(loop, names[purpose])
    # of the instruction: blocks that become one lose what they were told
    sch.storage_align(sch.get_sblock(LEAVE), 0, -2, _BANKS, SKEW_OF_TURNED if turned else SKEW)


def _finish_together(sch: Schedule, s: CanonicalSpec, variant: TensorVariant, decide: Decisions) -> LoopRV:
    """Spreads the finishing of a tile, or of its part, over the threads of its block; returns the loop over tiles."""
    out = sch.get_sblock("out" if variant.parts == 1 else "partial")
    last = s.data_format == CHANNELS_LAST
    *tiles, cells, filters, i, j, lane = sch.get_loops(out)
    if not last and variant.parts > 1:
        i, j = j, i
    near = [d for d in _NEAR_TILES if int(sch.get(cells).extent) % d == 0]
    far, near_cells = sch.split(cells, [None, decide.choice("near_tiles", near, 1)])
    sch.reorder(far, filters, near_cells)
    block = sch.fuse(*tiles, far, filters, near_cells)
    sch.bind(block, "blockIdx.x")
    if variant.stages == 1:
        # else the compiler would find the waits of the last steps with loop variables in their operands
        unroll_by_pragma(sch, block)
    # neighbouring threads store neighbouring elements
    order = (i, j) if last else (j, i)
    sch.reorder(*order, lane)
    thread = spread_over_warps(sch, order, variant.warps)
    if variant.parts == 1:
        finish_tile(sch, thread, last)
    else:
        add_parts(sch, last)
        # sums in float32, 16 bytes at once
        _, lane = sch.split(lane, [None, min(4, int(sch.get(lane).extent))])
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    return block


def _leave(sch: Schedule, leave: BlockRV, block: LoopRV, variant: TensorVariant) -> tuple[LoopRV, LoopRV]:
    """Copies the sums from fragments to shared memory; returns the loops over warps and over a fragment's rows."""
    sch.compute_at(leave, block, preserve_unit_loops=True)
    *_, share, i, j = sch.get_loops(leave)
    warp_i, i, i16 = sch.split(i, [variant.warps_cells, None, EDGE])
    warp_j, j, j16 = sch.split(j, [variant.warps_filters, None, EDGE])
    sch.reorder(warp_i, warp_j, i, j, i16, j16)
    warp = sch.fuse(*([share] if variant.warps_terms > 1 else []), warp_i, warp_j)
    sch.bind(warp, "threadIdx.y")
    sch.unroll(i)
    sch.unroll(j)
    return warp, i16


def _fetch(
    sch: Schedule, s: CanonicalSpec, variant: TensorVariant, sums: BlockRV, step: LoopRV, depth: LoopRV
) -> list[LoopRV]:
    """Brings a step of both matrices into shared memory, each depth of 16 into fragments; returns the latter's rows."""
    kernel = sch.cache_read(sums, 1, "shared.dyn")
    gather = sch.get_sblock("gather")
    sch.set_scope(gather, 0, "shared.dyn")
    rows_of_fragments = []
    for number, (source, scope) in enumerate(((gather, "wmma.matrix_a"), (kernel, "wmma.matrix_b"))):
        fragments = sch.cache_read(sums, number, scope)
        sch.compute_at(fragments, depth, preserve_unit_loops=True)
        rows, columns = sch.get_loops(fragments)[-2:]
        (rows, rows16), (columns, columns16) = sch.split(rows, [None, EDGE]), sch.split(columns, [None, EDGE])
        sch.reorder(rows, columns, rows16, columns16)
        sch.unroll(rows)
        sch.unroll(columns)
        rows_of_fragments.append(rows16)
        sch.compute_at(source, step, preserve_unit_loops=True)
        sch.storage_align(source, 0, -2, 16, SKEW)
    i, term = sch.get_loops(gather)[-2:]
    term, lanes = sch.split(term, [None, variant.vector])
    order = [i, term]
    if not (variant.turned or reads_along_terms(s, variant.flat)):
        # pairs of terms share a word: rows of as many positions more would lie in its banks
        (far, near), (pairs, pair) = sch.split(i, [None, EDGE]), sch.split(term, [None, 2])
        order = [pairs, far, pair, near]
    elif variant.vector == _WEIGHTS_AT_ONCE:
        # eight threads, which store together, to as many rows: neighbours in one row share banks with those of the next
        far, near = sch.split(i, [None, 8])
        order = [far, term, near]
    sch.reorder(*order, lanes)
    spread_over_warps(sch, order, variant.warps)
    if variant.vector > 1:
        sch.vectorize(lanes)
    term, j = sch.get_loops(kernel)[-2:]
    j, lanes = sch.split(j, [None, _WEIGHTS_AT_ONCE])
    spread_over_warps(sch, (term, j), variant.warps)
    sch.vectorize(lanes)
    return rows_of_fragments
