"""Large linear layers by oneDNN, which torch has beside MKL, where that does not use the CPU's widest vectors.

MKL, torch's choice for linear layers in float32, takes AMD's processors for ones with vectors of half the width. On two
threads of a Zen 5 (torch 2.13, 2026-11-28) the four linear layers of UNETR's transformer, 216 tokens of 768 and 3072
features, take oneDNN 0.44 to 0.45 of the time, and no more memory: it reads the weights as they lie.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.target.cpu import cpu_name
from tvm_conv3d.torch.graph.patterns import bound
from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.linear import LINEAR

#: Rows, and multiply-adds, from which on it was faster: weights are read twice, which few rows do not pay for.
_MIN_ROWS, _MIN_MACS = 128, 1 << 26


def replace(graph: Graph) -> None:
    """Puts the operator in the place of torch's function where that is slow."""
    if not _pays():
        return
    for node in graph.nodes:
        given = bound(node, _SIGNATURES)
        if given is not None and _is_large(given["input"], given["weight"]) and _is_float32(given.values()):
            node.target, node.args, node.kwargs = LINEAR, tuple(given.values()), {}


def _pays() -> bool:
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AMD" in cpu_name()


def _is_large(x: Any, weight: Any) -> bool:
    known = [info(node) if isinstance(node, Node) else None for node in (x, weight)]
    if known[0] is None or known[1] is None or len(known[1].shape) != 2:
        return False
    *rows, depth = known[0].shape
    if not all(isinstance(extent, int) for extent in (*rows, depth)):
        return False
    count = math.prod(rows)
    return count >= _MIN_ROWS and count * depth * known[1].shape[0] >= _MIN_MACS


def _is_float32(operands: Any) -> bool:
    known = [info(node) if isinstance(node, Node) else None for node in operands if node is not None]
    return all(of is not None and of.dtype == torch.float32 and of.device.type == "cpu" for of in known)


_SIGNATURES = {functional.linear: inspect.signature(lambda input, weight, bias=None: ...)}
