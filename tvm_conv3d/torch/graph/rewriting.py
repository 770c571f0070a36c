"""All that is done to a graph of torch's functions, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.nn import functional

from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.graph import attention, concatenated, fusion, in_place, linear, memory_bound
from tvm_conv3d.torch.graph.patterns import PADS, is_volume, sum_of
from tvm_conv3d.torch.graph.tensors import info, set_info
from tvm_conv3d.torch.operators.concatenation import CONCATENATION
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION
from tvm_conv3d.torch.operators.interpolation import INTERPOLATION
from tvm_conv3d.torch.operators.memory import empty_contiguous
from tvm_conv3d.torch.operators.normalization import NORMALIZATION, NORMALIZATION_
from tvm_conv3d.torch.operators.pooling import POOLING

#: Operators whose results nobody else holds.
FRESH = frozenset((FUSED_CONVOLUTION, NORMALIZATION, POOLING, INTERPOLATION, CONCATENATION))

_DROPOUTS = (functional.dropout, functional.dropout3d, functional.alpha_dropout, functional.feature_alpha_dropout)


def rewrite(graph: Graph) -> str | None:
    """Rewrites a graph to this package's operators, all volumes with their channels last.

    Args:
        graph: of torch's functions; what is known of tensors is noted (:mod:`tvm_conv3d.torch.graph.tensors`).

    Returns:
        None, or why it can't be done; then the graph computes the same, but is of no use.
    """
    _methods_as_functions(graph)
    reason = in_place.remove(graph)
    if reason is not None:
        return reason
    _drop_what_does_nothing(graph)
    fusion.fuse_convolutions(graph)
    fusion.fuse_norms(graph)
    memory_bound.replace(graph)
    linear.replace(graph)
    concatenated.split_convolutions(graph)
    if not any(node.target in FRESH for node in graph.nodes):
        return "it has no volumes that this package computes"
    _free_order_of_memory(graph)
    _keep_outputs_in_order(graph)
    in_place.restore(graph, FRESH)
    _add_in_place(graph)
    _normalize_in_place(graph)
    attention.write_over(graph)
    graph.lint()
    return None


def _methods_as_functions(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_method" and hasattr(torch.Tensor, node.target):
            node.op, node.target = "call_function", getattr(torch.Tensor, node.target)


def _drop_what_does_nothing(graph: Graph) -> None:
    """Dropouts in inference, and pads of no width; results stay what they are: memory of their own, or not."""
    for node in list(graph.nodes):
        dropout = node.target in _DROPOUTS and not _argument(node, 2, "training", True)
        pad = node.target in PADS and not any(_argument(node, 1, "pad", (1,)))
        if (dropout or pad) and isinstance(node.args[0], Node) and not _is_result(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_result(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _free_order_of_memory(graph: Graph) -> None:
    """Replaces what asks for torch's order of memory by what takes any."""
    for node in list(graph.nodes):
        if node.target is torch.Tensor.view and not isinstance(_argument(node, 1, "dtype", None), torch.dtype):
            node.target = torch.Tensor.reshape
        plain = node.target is torch.Tensor.contiguous and is_volume(node.args[0]) and not node.kwargs
        if plain and not _is_result(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _keep_outputs_in_order(graph: Graph) -> None:
    """Results lie in memory as torch's would."""
    (output,) = graph.find_nodes(op="output")
    restored: dict[Node, Node] = {}

    def restore(node: Node) -> Node:
        of = info(node)
        if node.op != "call_function" or of is None or not all(isinstance(stride, int) for stride in of.strides):
            return node
        if node not in restored:
            with graph.inserting_before(output):
                restored[node] = set_info(graph.call_function(laid_out, (node, list(of.strides))), of)
        return restored[node]

    output.args = torch.fx.map_arg(output.args, restore)


def stays(shape: Sequence[int], strides: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether :func:`laid_out` returns a tensor of this shape and these strides itself."""
    axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    return all(strides[axis] == wanted[axis] for axis in axes) or any(wanted[axis] == 0 for axis in axes)


def laid_out(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """`tensor` with these strides: itself where it has them, but for axes of one element, else a copy."""
    if stays(tensor.shape, tensor.stride(), strides):
        return tensor
    made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device="meta")
    # compilers pass tensors without memory, and plan their own
    if made.is_contiguous() and tensor.dtype in DTYPES and type(tensor) is torch.Tensor:
        # volumes that nobody holds any more have left their memory there
        return empty_contiguous(tensor).copy_(tensor)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _add_in_place(graph: Graph) -> None:
    """A sum is written over the one of its operands that nobody else sees."""
    for node in graph.nodes:
        operands = sum_of(node)
        if operands is None:
            continue
        for one, other in (operands, operands[::-1]):
            if one.target in FRESH and len(one.users) == 1:
                node.target, node.args, node.kwargs = torch.Tensor.add_, (one, other), {}
                break


def _normalize_in_place(graph: Graph) -> None:
    """A norm writes where it reads, where nobody else sees what it reads."""
    for node in list(graph.nodes):
        if node.target is not NORMALIZATION:
            continue
        source = node.args[0]
        if source.target in FRESH and len(source.users) == 1 and source not in node.args[1:]:
            node.target = NORMALIZATION_
            node.replace_all_uses_with(source, delete_user_cb=lambda user, node=node: user is not node)
