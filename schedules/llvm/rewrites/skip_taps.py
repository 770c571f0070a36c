"""Taps that a phase of a transposed convolution does not have are skipped.

All phases share a range of taps (:mod:`tvm_conv3d.compute.transposed`), of which each has its own; the weights of the
others are zero. With a kernel of 3 and strides of 2 more than half of the products would have such a factor, and make
NaN where the input is not finite.
"""

from __future__ import annotations

import tvm_ffi
from tvm import IRModule, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute import phases
from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.rewrites.lower import values_in

#: Annotation of a loop over the taps of an axis (0 depth, 1 height, 2 width): the axis.
_TAPS = "tvm_conv3d.taps_of_phases"


def mark(sch: Schedule, spec: CanonicalSpec, loops: tuple[LoopRV, LoopRV, LoopRV]) -> None:
    """Marks the loops over taps along depth, height and width, where there are phases."""
    if spec.phased:
        for axis, loop in enumerate(loops):
            sch.annotate(loop, _TAPS, axis)


def guard(module: IRModule, spec: CanonicalSpec, sets: int) -> IRModule:
    """Puts the body of every marked loop under the condition that the set of filters has the tap.

    Args:
        module: scheduled; `main` is rewritten.
        spec: the problem.
        sets: position of the number of the set among the iteration values of the block.
    """
    if not spec.phased:
        return module

    def guarded(loop: tirx.For) -> tirx.For:
        if _TAPS not in loop.annotations:
            return loop
        others = {key: value for key, value in loop.annotations.items() if key != _TAPS}
        present = phases.has_tap(spec, int(loop.annotations[_TAPS]), values_in(loop)[sets], loop.loop_var)
        body = loop.body if present is None else tirx.IfThenElse(present, loop.body, None)
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, others)

    function = module["main"]
    return IRModule({"main": function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, guarded)))})
