"""What is changed between a schedule and machine code, as passes that find their work by marks.

Each pass has a name, `conv3d.…`, by which the instruments of a `PassContext` see it and `disabled_pass` leaves it out.
Without those of :data:`LOWER` up to vectors, a function is slower, at most; the ones after them finish what a pass
before has begun, as do all of :data:`FINISH`: left out, results are wrong.
"""

from __future__ import annotations

from tvm import IRModule, ir

from tvm_conv3d.compute.shared import tiled_output
from tvm_conv3d.schedules import long_sums
from tvm_conv3d.schedules.llvm.passes import (
    copy_channel_chunks,
    insert_prefetch,
    lower_to_loops,
    marks,
    mask_output_tail,
    nontemporal_stores,
    prefetch_weights,
    shuffle_permuted_loads,
    skip_missing_taps,
    skip_padding_taps,
    stream_contiguous_runs,
    transpose_copies,
    vectorize_libm,
    vectorize_row_stores,
)
from tvm_conv3d.target.description import Target


@marks.module_pass("restore_output_layout")
def _in_real_layout(module: IRModule) -> IRModule:
    return tiled_output.restore_layout(module) if tiled_output.is_tiled(module) else module


@marks.module_pass("split_long_sums")
def _with_long_sums_in_parts(module: IRModule) -> IRModule:
    return long_sums.in_parts(module)


#: Of a scheduled function: what no schedule primitive expresses.
FINISH = ir.transform.Sequential(
    (
        marks.find,
        vectorize_libm.rewrite,
        _in_real_layout,
        skip_padding_taps.guard,
        skip_missing_taps.guard,
        insert_prefetch.insert,
        prefetch_weights.insert,
        _with_long_sums_in_parts,
        mask_output_tail.note,
        stream_contiguous_runs.note,
    ),
    name="conv3d.finish",
)

#: Of one with small buffers: what only loops over memory, or vectors, show.
LOWER = ir.transform.Sequential(
    (
        lower_to_loops.to_loops,
        transpose_copies.rewrite,
        copy_channel_chunks.rewrite,
        vectorize_row_stores.rewrite,
        lower_to_loops.to_vectors,
        shuffle_permuted_loads.rewrite,
        mask_output_tail.rewrite,
        stream_contiguous_runs.rewrite,
        nontemporal_stores.rewrite,
    ),
    name="conv3d.lower",
)


def finished(module: IRModule) -> IRModule:
    """A function as scheduled, with the changes that no schedule primitive expresses."""
    return FINISH(module)


def lowered(module: IRModule, target: Target) -> IRModule:
    """The same with small buffers, ready for TVM's compiler; the very module where nothing in it is marked."""
    with target.as_tvm():
        found = LOWER(module)
    return module if found.same_as(module) else found
