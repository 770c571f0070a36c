"""Lowering of a scheduled function by TVM's own passes, for changes that only its loops or its vectors show.

The passes find nothing more to do when the module is compiled.
"""

from __future__ import annotations

from tvm import IRModule, ir, tirx
from tvm.s_tir import transform
from tvm.target import Target


def to_loops(module: IRModule, target: Target) -> IRModule:
    """A scheduled module as plain loops over memory with a single index; vectorized loops are still loops."""
    passes = (
        tirx.transform.BindTarget(target),
        transform.CanonicalizeLoop(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.CompactBufferAllocation(),
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
    with target:
        return tirx.transform.VectorizeLoop(True)(module)
