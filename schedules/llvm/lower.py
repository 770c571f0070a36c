"""Lowering of a scheduled function as far as to vectors, for changes that only its vectors show."""

from __future__ import annotations

from tvm import IRModule, ir, tirx
from tvm.s_tir import transform
from tvm.target import Target


def to_vectors(module: IRModule, target: Target) -> IRModule:
    """`module` lowered by TVM's own passes, which find nothing more to do when it is compiled."""
    passes = (
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
        tirx.transform.VectorizeLoop(True),
    )
    with target:
        return ir.transform.Sequential((tirx.transform.BindTarget(target), *passes))(module)
