"""Ways into a scheduled function: what its blocks' axes are bound to, and its lowering by TVM's own passes.

The passes find nothing more to do when the module is compiled.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlockRealize, transform
from tvm.target import Target

#: Passes of TVM's compiler that a module of small buffers need not go through again: up to a tenth of its time.
DONE = ("s_tir.CompactBufferAllocation",)


def to_small_buffers(module: IRModule) -> IRModule:
    """A scheduled module with each buffer allocated where it is used, as small as its use allows."""
    passes = (
        transform.CanonicalizeLoop(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.CompactBufferAllocation(),
    )
    return ir.transform.Sequential(passes)(module)


def to_loops(module: IRModule, target: Target) -> IRModule:
    """A module of small buffers as plain loops over memory with a single index; vectorized loops are still loops."""
    passes = (
        tirx.transform.BindTarget(target),
        transform.LowerMatchBuffer(),
        transform.StmtSimplify(),
        transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        transform.LoopPartition(),
    )
    with target:
        return ir.transform.Sequential(passes)(module)


def to_vectors(module: IRModule, target: Target) -> IRModule:
    """A module of plain loops with operations on vectors in place of its vectorized loops."""
    # of indices of 64 bits, vectorizing leaves casts of vectors, for which the passes of the compiler fail
    with target:
        return ir.transform.Sequential((tirx.transform.VectorizeLoop(True), transform.StmtSimplify()))(module)


def values_in(loop: tirx.For) -> list[Any]:
    """What the axes of the block in `loop` are bound to, as known in the loop's body: inner loops at their start."""
    found: list[Any] = []
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(loop.body, ((SBlockRealize, found.append), (tirx.For, loops.append)))

    def known(var: ir.Var) -> Any:
        return next((inner.min for inner in loops if var.same_as(inner.loop_var)), var)

    return [tvm_ffi.structural_map(value, (ir.Var, known)) for value in found[0].iter_values]
