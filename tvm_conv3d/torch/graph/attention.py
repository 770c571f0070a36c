"""Sums and softmaxes of attention, written over what they are made of: torch has new memory for the result of each.

Scores of all pairs of tokens are the largest that a transformer has: those of SwinUNETR's first stage take 462 MiB, and
so do the same with a bias, with a mask, and their softmax. Pages of so much are new to each, too: written over, they
leave a call 0.68 of its time (two threads of a Zen 5, torch 2.14, 2026-11-28).
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.graph.patterns import SUMS, bound
from tvm_conv3d.torch.graph.tensors import TensorInfo, info

#: Bytes of scores from which on they are written over.
_MIN_BYTES = 1 << 20

#: Bytes of a softmax that are computed at once: they stay in the caches.
_PART = 2 << 20


def softmax_(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """`torch.softmax`, written over its input.

    Args:
        tensor: of floating point.
        dim: along which results add up to 1; not the first.
    """
    if type(tensor) is not torch.Tensor:
        # compilers plan memory of their own
        return torch.softmax(tensor, dim)
    for part in tensor.split(max(1, len(tensor) * _PART // tensor.nbytes)):
        part.copy_(torch.softmax(part, dim))
    return tensor


def write_over(graph: Graph) -> None:
    """Writes sums and softmaxes over scores that nobody else sees."""
    for node in graph.nodes:
        given = bound(node, SUMS)
        if given is not None and given["alpha"] == 1:
            for one, other in ((given["input"], given["other"]), (given["other"], given["input"])):
                if _is_spare(one, node):
                    node.target, node.args, node.kwargs = torch.Tensor.add_, (one, other), {}
                    break
        given = bound(node, _SOFTMAXES)
        if given is not None and given["dtype"] is None and _is_spare(given["input"], node):
            dim, count = given["dim"], len(_known(node).shape)
            if isinstance(dim, int) and dim % count:
                node.target, node.args, node.kwargs = softmax_, (given["input"], dim), {}


def _is_spare(source: Any, node: Node) -> bool:
    """Whether `source` are scores of a node's shape and type that nobody else sees, or a view of such."""
    if not isinstance(source, Node):
        return False
    of, result = info(source), info(node)
    if of is None or result is None or (of.shape, of.dtype) != (result.shape, result.dtype):
        return False
    known = all(isinstance(extent, int) for extent in of.shape)
    if not known or of.dtype not in DTYPES or of.device.type != "cpu" or of.nbytes < _MIN_BYTES:
        return False
    while len(source.users) == 1 and source.target in _VIEWS and isinstance(source.args[0], Node):
        source = source.args[0]
    return len(source.users) == 1 and source.target in _MADE


def _known(node: Node) -> TensorInfo:
    found = info(node)
    assert found is not None
    return found


#: What scores are made by: functions whose results nobody else holds, and what writes over these.
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, operator.matmul, torch.bmm, torch.Tensor.bmm)
_MADE = frozenset((*_PRODUCTS, *SUMS, torch.Tensor.add_, softmax_))

#: Functions whose results share their input's memory, or have their own.
_VIEWS = frozenset((torch.reshape, torch.Tensor.reshape, torch.Tensor.view))

_SOFTMAXES = dict.fromkeys(
    (torch.softmax, torch.Tensor.softmax), inspect.signature(lambda input, dim, dtype=None: ...)
) | {functional.softmax: inspect.signature(functional.softmax)}
