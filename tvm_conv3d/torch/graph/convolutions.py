"""Convolutions of a rewritten graph: their operands as nodes, and what the module holds of them."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.composition import Epilogue
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION, split_arguments
from tvm_conv3d.torch.operators.geometry import Geometry, split_geometry

#: What rewriting lets a graph make of its module's weights before a convolution reads them.
_OF_WEIGHTS = (torch.narrow, torch.zeros_like)


class Call(NamedTuple):
    """A fused convolution of a graph, by its nodes.

    Attributes:
        kinds: as of :func:`tvm_conv3d.torch.operators.cpu_fused_convolution.spec_of`.
        weight, bias: nodes.
        epilogue: of nodes.
        geometry: of the convolution.
        packed_limit: bytes that its packed weights may take.
    """

    kinds: tuple[Any, ...]
    weight: Node
    bias: Node | None
    epilogue: Epilogue
    geometry: Geometry
    packed_limit: int | None

    @classmethod
    def of(cls, node: Node) -> Call:
        """The call of a node."""
        x, weight, bias, *rest = node.args
        epilogue, geometry = split_arguments(rest)
        kinds = tuple(map(_kind, (x, weight, bias, epilogue.residual, *epilogue.batch_norm)))
        limit = split_geometry(rest[len(epilogue) :])[1]
        return cls(kinds, weight, bias, epilogue, geometry, limit)

    @property
    def weights(self) -> tuple[Node | None, ...]:
        """Nodes of all that is not a volume: weight, bias, slope and the batch norm's parts; None for none."""
        return self.weight, self.bias, self.epilogue.slope, *self.epilogue.batch_norm

    def held(self, module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, Epilogue]:
        """Weight, bias, and the epilogue without its residual operand, of a module that holds them."""
        weight, bias, slope, *batch_norm = (value(node, module) for node in self.weights)
        return weight, bias, self.epilogue._replace(batch_norm=batch_norm, residual=None, slope=slope)


def convolutions(graph: Graph) -> list[Node]:
    """Nodes of fused convolutions, in order."""
    return [node for node in graph.nodes if node.target is FUSED_CONVOLUTION]


def is_held(node: Any) -> bool:
    """Whether the module holds what a node stands for, or what that is a part of or made of, or there is none."""
    if not isinstance(node, Node) or node.op == "get_attr":
        return True
    return node.target in _OF_WEIGHTS and is_held(node.args[0])


def held_in(node: Node) -> Node:
    """The node of the module's tensor of which something that is held is a part, or made: itself where it is one."""
    while node.op != "get_attr":
        node = node.args[0]
    return node


def value(node: Any, module: torch.nn.Module) -> Any:
    """What a node stands for that the module holds; None for none."""
    if not isinstance(node, Node):
        return node
    if node.op == "get_attr":
        return attrgetter(str(node.target))(module)
    return node.target(*(value(argument, module) for argument in node.args))


def _kind(node: Node | None) -> tuple[torch.Size, torch.dtype] | None:
    of = None if node is None else info(node)
    return None if of is None else (torch.Size(of.shape), of.dtype)
