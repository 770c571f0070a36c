"""Ways into a scheduled function: what its blocks' axes are bound to, and its lowering by TVM's own passes.

The passes find nothing more to do when the module is compiled. Only functions with marks are lowered here: TVM's
compiler lowers the others.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlockRealize, transform
from tvm.target import Target

from tvm_conv3d.schedules.llvm.passes import marks

#: Passes of TVM's compiler that a module of small buffers need not go through again: up to a tenth of its time.
DONE = ("s_tir.CompactBufferAllocation",)

#: Mark of a function that is lowered to loops, of which those of vectors are to become operations on them.
_IN_LOOPS = "tvm_conv3d.in_loops"

_TO_SMALL_BUFFERS = ir.transform.Sequential(
    (
        transform.CanonicalizeLoop(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.CompactBufferAllocation(),
    )
)

_TO_LOOPS = ir.transform.Sequential(
    (
        transform.LowerMatchBuffer(),
        transform.StmtSimplify(),
        transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        transform.LoopPartition(),
    )
)

# of indices of 64 bits, vectorizing leaves casts of vectors, for which the passes of the compiler fail
_TO_VECTORS = ir.transform.Sequential((tirx.transform.VectorizeLoop(True), transform.StmtSimplify()))


def to_small_buffers(module: IRModule) -> IRModule:
    """A scheduled module with each buffer allocated where it is used, as small as its use allows."""
    return _TO_SMALL_BUFFERS(module)


@marks.module_pass("lower_to_loops")
def to_loops(module: IRModule) -> IRModule:
    """A marked module of small buffers, for the target in whose scope this runs, as plain loops over memory.

    Memory has a single index; vectorized loops are still loops.
    """
    if not marks.has_some(module):
        return module
    in_loops = _TO_LOOPS(tirx.transform.BindTarget(Target.current(False))(module))
    return marks.each(in_loops, lambda function: marks.adding(function, _IN_LOOPS))


@marks.module_pass("vectorize_loops", _IN_LOOPS)
def to_vectors(module: IRModule) -> IRModule:
    """A module of plain loops with operations on vectors in place of its vectorized loops."""
    return _TO_VECTORS(module)


def values_in(loop: tirx.For) -> list[Any]:
    """What the axes of the block in `loop` are bound to, as known in the loop's body: inner loops at their start."""
    found: list[Any] = []
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(loop.body, ((SBlockRealize, found.append), (tirx.For, loops.append)))

    def known(var: ir.Var) -> Any:
        return next((inner.min for inner in loops if var.same_as(inner.loop_var)), var)

    return [tvm_ffi.structural_map(value, (ir.Var, known)) for value in found[0].iter_values]
