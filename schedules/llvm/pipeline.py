"""What is changed between a schedule and machine code: what only vectors show."""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.target import Target

from tvm_conv3d.schedules.llvm import overhang, runs, shuffles, stream_stores
from tvm_conv3d.schedules.llvm.lower import to_vectors


def lowered(module: IRModule, variant: Any, target: Target) -> IRModule:
    """The scheduled function of `variant`, ready for TVM's compiler."""
    permuted = getattr(variant, "shuffled", False) or getattr(variant, "interleaved", 1) > 1
    noted = overhang.marked(module) or runs.marked(module)
    if not (permuted or noted or variant.stream):
        return module
    # once only: what was changed below is taken for less than it is when lowered again, and buffers shrink
    module = to_vectors(module, target)
    if permuted:
        module = shuffles.rewrite(module)
    if noted:
        module = runs.rewrite(overhang.rewrite(module), past_caches=variant.stream)
    return stream_stores.rewrite(module) if variant.stream else module
