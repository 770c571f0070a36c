"""Changes to a scheduled function that need single indices and vectors: it is lowered that far, then rewritten."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import transform
from tvm.target import Target

from tvm_conv3d.schedules.llvm import functions, rows, transpose
from tvm_conv3d.targets import CpuTraits, cpu_traits


def lowered(module: IRModule, target: Target) -> IRModule:
    """A scheduled module with its marked loops rewritten and vectorized; TVM's passes find nothing more to do later."""
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
    )
    with target:
        flat = ir.transform.Sequential((tirx.transform.BindTarget(target), *passes))(module)
        return tirx.transform.VectorizeLoop(True)(_rewritten(flat, cpu_traits(target)))


def is_marked(module: IRModule) -> bool:
    """Whether a scheduled module has loops that are to be rewritten."""
    found: list[tirx.For] = []

    def on_loop(loop: tirx.For) -> None:
        if transpose.TURNS in loop.annotations or rows.ROWS in loop.annotations:
            found.append(loop)

    tvm_ffi.structural_walk(module["main"].body, (tirx.For, on_loop))
    return bool(found)


def _rewritten(module: IRModule, traits: CpuTraits) -> IRModule:
    texts: dict[str, str] = {}

    def on_loop(loop: tirx.For) -> Any:
        if transpose.TURNS in loop.annotations:
            return transpose.calls(loop, traits, texts)
        if rows.ROWS in loop.annotations:
            return rows.vectors(loop, traits.lanes("float32"))
        return loop

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.For, on_loop))
    return IRModule({"main": function.with_body(functions.imported(body, texts))})
