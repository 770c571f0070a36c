"""Taps that a phase of a transposed convolution does not have are skipped.

All phases share a range of taps (:mod:`tvm_conv3d.compute.shared.transposed`), of which each has its own; the weights
of the others are zero. With a kernel of 3 and strides of 2 more than half of the products would have such a factor, and
make NaN where the input is not finite.
"""

from __future__ import annotations

import itertools

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared import phases
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import marks
from tvm_conv3d.schedules.llvm.passes.lower_to_loops import values_in

#: Annotation of a loop over the taps of an axis: the position of the number of the set of filters among the iteration
#: values of the block; by how much that number grows from one phase of the axis to the next; how many phases there
#: are; and, phase by phase, whether it has each tap.
_TAPS = "tvm_conv3d.taps_of_phases"


def mark(sch: Schedule, spec: CanonicalSpec, loops: tuple[LoopRV, LoopRV, LoopRV], sets: int) -> None:
    """Marks the loops over taps of which not every phase has each.

    Args:
        sch: the schedule.
        spec: the problem.
        loops: over the taps along depth, height and width.
        sets: position of the number of the set of filters among the iteration values of the block.
    """
    for axis, loop in enumerate(loops):
        present = phases.present(spec, axis)
        if spec.phased and not all(map(all, present)):
            taps = map(int, itertools.chain.from_iterable(present))
            sch.annotate(loop, _TAPS, [sets, phases.inner(spec, axis), len(present), *taps])


@marks.function_pass("skip_missing_taps", _TAPS)
def guard(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Puts the body of every marked loop under the condition that the set of filters has the tap."""

    def guarded(loop: tirx.For) -> tirx.For:
        if _TAPS not in loop.annotations:
            return loop
        sets, inner, count, *taps = map(int, loop.annotations[_TAPS])
        each = len(taps) // count
        present = [list(map(bool, taps[start : start + each])) for start in range(0, len(taps), each)]
        there = phases.is_present(present, inner, values_in(loop)[sets], loop.loop_var)
        return marks.without(loop, _TAPS, body=tirx.IfThenElse(there, loop.body, None))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, guarded)))
