"""Pools, upsampling and concatenations of volumes by this package's operators, which keep the channels last."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.torch.arguments import three
from tvm_conv3d.torch.graph.patterns import bound, is_volume
from tvm_conv3d.torch.graph.tensors import info, set_info
from tvm_conv3d.torch.operators.concatenation import CONCATENATION
from tvm_conv3d.torch.operators.interpolation import INTERPOLATION
from tvm_conv3d.torch.operators.pooling import POOLING

#: Bytes of a result from which on this package's operators are faster than torch's: a call takes 40 us, torch's 3; and
#: channels, as a vector holds channels of one position (two threads of a Zen 4, torch 2.13, 2026-11-27).
_MIN_BYTES, _MIN_CHANNELS = 1 << 20, 4

#: An operator and its arguments.
_Call = tuple[Any, tuple[Any, ...]]


def replace(graph: Graph) -> None:
    """Puts this package's operators in the place of torch's functions."""
    for node in list(graph.nodes):
        given = bound(node, _SIGNATURES) if _is_large(node) else None
        call = None if given is None else _CALLS[node.target](node, given)
        if call is None:
            continue
        with graph.inserting_before(node):
            made = set_info(graph.call_function(*call), info(node))
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _is_large(node: Node) -> bool:
    """Whether a result takes longer than this package's call does around its kernel, and has vectors of channels."""
    of = info(node)
    if of is None or len(of.shape) != 5 or not all(isinstance(extent, int) for extent in of.shape):
        return False
    return of.nbytes >= _MIN_BYTES and of.shape[1] >= _MIN_CHANNELS


def _max_pool(node: Node, given: dict[str, Any]) -> _Call | None:
    if not is_volume(given["input"]) or given["return_indices"]:
        return None
    dilation, ceil = three(given["dilation"]), given["ceil_mode"]
    return POOLING, (given["input"], "max", *_windows(given), list(dilation), ceil, True, None)


def _average_pool(node: Node, given: dict[str, Any]) -> _Call | None:
    if not is_volume(given["input"]):
        return None
    more = (given["ceil_mode"], given["count_include_pad"], given["more"].get("divisor_override"))
    return POOLING, (given["input"], "average", *_windows(given), [1, 1, 1], *more)


def _windows(given: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    kernel = three(given["kernel_size"])
    stride = three(given["stride"]) if given["stride"] not in (None, []) else kernel
    return list(kernel), list(stride), list(three(given["padding"]))


def _interpolate(node: Node, given: dict[str, Any]) -> _Call | None:
    of = info(node)
    if not is_volume(given["input"]) or of is None or given["antialias"]:
        return None
    if given["mode"] not in ("nearest", "trilinear"):
        return None
    size, factors = list(of.shape[2:]), given["scale_factor"]
    burned = factors is None or given["recompute_scale_factor"]
    scales = [] if burned else [float(f) for f in (factors if isinstance(factors, (list, tuple)) else [factors] * 3)]
    return INTERPOLATION, (given["input"], size, scales, given["mode"], bool(given["align_corners"]))


def _concatenate(node: Node, given: dict[str, Any]) -> _Call | None:
    tensors = given["tensors"]
    if not isinstance(tensors, (list, tuple)) or given["dim"] not in (1, -4) or not all(map(is_volume, tensors)):
        return None
    kinds = {(info(tensor).dtype, info(tensor).shape[2:]) for tensor in tensors}  # type: ignore[union-attr]
    return (CONCATENATION, (list(tensors),)) if len(kinds) == 1 else None


_CALLS: dict[Any, Callable[[Node, dict[str, Any]], _Call | None]] = {
    functional.max_pool3d: _max_pool,
    functional.avg_pool3d: _average_pool,
    functional.interpolate: _interpolate,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
}


_CAT = inspect.signature(lambda tensors, dim=0: ...)
_SIGNATURES = {
    functional.max_pool3d: inspect.signature(
        lambda input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False: ...
    ),
    functional.avg_pool3d: inspect.signature(
        lambda input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, **more: ...
    ),
    functional.interpolate: inspect.signature(functional.interpolate),
    torch.cat: _CAT,
    torch.concat: _CAT,
}
