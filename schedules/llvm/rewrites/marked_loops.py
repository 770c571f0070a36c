"""Loops that a schedule marks, as TVM has no primitive for what becomes of them.

That is told by :mod:`transpose`, :mod:`pieces` and :mod:`rows`.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, tirx

from tvm_conv3d.schedules.llvm.rewrites import injected, pieces, rows, transpose
from tvm_conv3d.targets import CpuTraits


def has_some(module: IRModule) -> bool:
    """Whether a scheduled module has loops that are to be rewritten."""
    found: list[tirx.For] = []

    def on_loop(loop: tirx.For) -> None:
        if any(mark in loop.annotations for mark in (transpose.TURNS, transpose.COPIES, pieces.PIECES, rows.ROWS)):
            found.append(loop)

    tvm_ffi.structural_walk(module["main"].body, (tirx.For, on_loop))
    return bool(found)


def rewrite(module: IRModule, traits: CpuTraits) -> IRModule:
    """A function lowered to loops with its marked loops rewritten; others are as they were."""
    texts: dict[str, str] = {}

    def on_loop(loop: tirx.For) -> Any:
        if transpose.TURNS in loop.annotations or transpose.COPIES in loop.annotations:
            return transpose.calls(loop, traits, texts)
        if pieces.PIECES in loop.annotations:
            return pieces.calls(loop, traits, texts)
        if rows.ROWS in loop.annotations:
            return rows.vectors(loop, traits)
        return loop

    function = module["main"]
    body = tvm_ffi.structural_map(function.body, (tirx.For, on_loop))
    return IRModule({"main": function.with_body(injected.with_functions(body, texts.values()))})
