"""What is changed between a schedule and machine code: what only loops over memory, or vectors, show."""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.target import Target

from tvm_conv3d.schedules.llvm.rewrites import lower, marked_loops, overhang, permuted_loads, rows, runs, stream_stores
from tvm_conv3d.targets import cpu_traits


def lowered(module: IRModule, variant: Any, target: Target) -> IRModule:
    """The function of `variant`, scheduled and with small buffers, ready for TVM's compiler."""
    permuted = getattr(variant, "shuffled", False) or getattr(variant, "interleaved", 1) > 1
    in_loops = marked_loops.has_some(module)
    in_parts = overhang.marked(module) or runs.marked(module)
    if not (permuted or in_loops or in_parts or variant.stream):
        return module
    module = lower.to_loops(module, target)
    if in_loops:
        module = marked_loops.rewrite(module, cpu_traits(target))
    module = lower.to_vectors(module, target)
    if in_loops:
        module = rows.store_parts(module)
    if permuted:
        module = permuted_loads.rewrite(module)
    if in_parts:
        module = runs.rewrite(overhang.rewrite(module), past_caches=variant.stream)
    return stream_stores.rewrite(module) if variant.stream else module
