"""What is changed between a schedule and machine code: what only vectors show."""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.target import Target

from tvm_conv3d.schedules.llvm import overhang, runs, shuffles, stream_stores
from tvm_conv3d.schedules.llvm.lower import to_vectors


def lowered(module: IRModule, variant: Any, target: Target) -> IRModule:
    """The scheduled function of `variant`, ready for TVM's compiler."""
    if getattr(variant, "shuffled", False) or getattr(variant, "interleaved", 1) > 1:
        module = shuffles.rewrite(module, target)
    if overhang.marked(module) or runs.marked(module):
        module = runs.rewrite(overhang.rewrite(to_vectors(module, target)), past_caches=variant.stream)
    return stream_stores.rewrite(module, target) if variant.stream else module
