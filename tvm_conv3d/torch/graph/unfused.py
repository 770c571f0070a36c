"""What a compiler of pointwise functions would save of a rewritten graph: values that one loop makes for another."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.torch.graph.rewriting import laid_out
from tvm_conv3d.torch.graph.tensors import info

#: Functions that compilers leave to libraries, too.
_LIBRARY = frozenset(
    (
        laid_out,
        functional.linear,
        torch.matmul,
        torch.Tensor.matmul,
        operator.matmul,
        torch.mm,
        torch.bmm,
        torch.addmm,
        torch.baddbmm,
        torch.functional.einsum,
        functional.scaled_dot_product_attention,
    )
)

#: Bytes that a compiler would save, for each of this package's operators, from which on its code is the faster. On two
#: threads of a Zen 5 a replay saves 30 to 300 us an operator, and 1 MiB that is not fused costs 30 to 80 us.
_WORTH = 3 << 18


def has_chains(graph: Graph) -> bool:
    """Whether chains of pointwise functions, norms and reductions of torch's are a good part of a graph.

    Args:
        graph: rewritten, all sizes known.
    """
    return _saved(graph) > _WORTH * sum(map(_is_ours, graph.nodes))


def _saved(graph: Graph) -> int:
    return sum(_nbytes(node) for node in graph.nodes if _is_loop(node) and any(map(_is_loop, _readers(node))))


def _nbytes(node: Node) -> int:
    of = info(node)
    return 0 if of is None else of.nbytes


def _is_ours(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "tvm_conv3d"


def _is_loop(node: Node) -> bool:
    """Whether a compiler would make a loop of its own of a node."""
    return node.op == "call_function" and not (_is_ours(node) or node.target in _LIBRARY or _is_view(node))


def _is_view(node: Node) -> bool:
    """Whether a node computes nothing: it shows memory of its operand otherwise, or takes a part of a tuple."""
    of = info(node)
    shown = [known for known in map(info, node.all_input_nodes) if of and known and known.storage == of.storage]
    # what writes over its operand is the same memory in the same order
    return of is None or any((known.shape, known.strides) != (of.shape, of.strides) for known in shown)


def _readers(node: Node) -> Iterator[Node]:
    """Who reads a node's elements, through views of it."""
    for user in node.users:
        if user.op == "call_function" and _is_view(user):
            yield from _readers(user)
        else:
            yield user
