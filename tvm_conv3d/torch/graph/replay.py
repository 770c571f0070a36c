"""A rewritten graph as a Python function, whose parameters are looked up in the module at each call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph


def compiled(graph: Graph) -> Callable[..., Any]:
    """The function of a module and of the graph's inputs, which returns the graph's outputs.

    Values are let go as soon as nobody uses them any more.
    """
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<tvm_conv3d: replayed module>", "exec"), space)
    return space["forward"]


def agrees(results: Sequence[Any], expected: Sequence[Any], inputs: Sequence[torch.Tensor]) -> str | None:
    """Whether results are those that are expected, up to rounding, in memory of their own where these are.

    Args:
        results: of a replay.
        expected: of the module.
        inputs: of both.

    Returns:
        None, or where they differ.
    """
    given = {tensor.untyped_storage()._cdata for tensor in inputs}
    for number, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        reason = _differs(result, wanted)
        if reason is None and _lies_in(result, given) != _lies_in(wanted, given):
            reason = "shares memory with an input, or does not where torch's does"
        if reason is not None:
            return f"result {number} {reason}"
    return None


def tells(expected: Sequence[Any]) -> bool:
    """Whether results are some that a wrong graph would not have, too: not all zero, infinite or NaN."""
    floating = [each for each in expected if isinstance(each, torch.Tensor) and each.dtype in _TOLERANCES]
    return all(any(bool((part.isfinite() & (part != 0)).any()) for part in _parts(e)) for e in floating if e.numel())


def _parts(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """All elements in the order in which they lie in memory: views where that is dense."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1).split(_PART)


def _lies_in(value: Any, storages: set[int]) -> bool:
    return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in storages


#: Relative error (2-norm) of a result above which it is not taken for the same: norms of few elements amplify rounding.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}

#: Elements that are compared at once: what float64 takes of them stays in a core's cache.
_PART = 1 << 16

#: The part of integers that may differ, as where the largest of two almost equal values is told.
_MAX_INTEGERS = 1e-2


def _differs(result: Any, wanted: Any) -> str | None:
    if not isinstance(wanted, torch.Tensor):
        return None if result == wanted else f"is {result!r}, not {wanted!r}"
    if result.shape != wanted.shape or result.dtype != wanted.dtype:
        return f"is {tuple(result.shape)} of {result.dtype}, not {tuple(wanted.shape)} of {wanted.dtype}"
    axes = [axis for axis, extent in enumerate(wanted.shape) if extent != 1]
    if any(result.stride(axis) != wanted.stride(axis) for axis in axes):
        return f"lies in memory as {result.stride()}, not {wanted.stride()}"
    if wanted.dtype not in _TOLERANCES:
        unequal = float((result != wanted).double().mean()) if wanted.numel() else 0.0
        return f"differs in {unequal:.1%} of its elements" if unequal > _MAX_INTEGERS else None
    scale = error = 0.0
    # whole results in float64, and masks of them, would be what a first call takes the most memory for
    for part, right in zip(_parts(result), _parts(wanted), strict=True):
        finite = right.isfinite()
        if not torch.equal(finite, part.isfinite()):
            return "is finite elsewhere"
        a, b = (torch.where(finite, each, 0).double() for each in (part, right))
        scale, error = math.hypot(scale, float(b.norm())), math.hypot(error, float((a - b).norm()))
    if error > _TOLERANCES[wanted.dtype] * scale:
        return f"has a relative error of {error / scale if scale else float('inf'):.1e}"
    return None
