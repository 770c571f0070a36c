"""What a rewritten graph's convolutions need, made before it is called."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime.ahead import Compilers
from tvm_conv3d.runtime.kept_weights import STORE
from tvm_conv3d.runtime.packed_limits import packed_limits
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.composition import Epilogue
from tvm_conv3d.torch.operators.cpu_fused_convolution import pack_weights, spec_of
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION, split_arguments
from tvm_conv3d.torch.operators.geometry import Geometry, split_geometry

#: The part of the memory for packed weights up to which they are packed ahead: beyond it the first might be forgotten
#: before they are read.
_PACKED_AHEAD = 0.5


class _Call(NamedTuple):
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
    def of(cls, node: Node) -> _Call:
        """The call of a node."""
        x, weight, bias, *rest = node.args
        epilogue, geometry = split_arguments(rest)
        kinds = tuple(map(_kind, (x, weight, bias, epilogue.residual, *epilogue.batch_norm)))
        limit = split_geometry(rest[len(epilogue) :])[1]
        return cls(kinds, weight, bias, epilogue, geometry, limit)


def bound_convolutions(graph: Graph, module: torch.nn.Module, compilers: Compilers) -> None:
    """Gives a graph's convolutions limits of the bytes that their packed weights take, by the whole graph's time.

    Args:
        graph: rewritten; the convolutions' nodes have one more argument afterwards.
        module: which its attributes are of.
        compilers: make the plans among which is chosen.
    """
    nodes, calls = [], []
    for node in _convolutions(graph):
        call = _Call.of(node)
        spec = _spec(call, module)
        if spec is not None:
            nodes.append(node)
            # nodes of one parameter are many
            calls.append((spec, call.weight.target if call.weight.op == "get_attr" else call.weight))
    compilers.plan(spec for spec, _ in calls)
    for node, limit in zip(nodes, packed_limits(calls), strict=True):
        node.args = (*node.args, limit)


def compile_convolutions(
    graph: Graph,
    module: torch.nn.Module,
    compilers: Compilers,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compiles what a graph's convolutions need, by all CPUs.

    Args:
        graph: rewritten.
        module: which its attributes are of.
        compilers: compile them.
        progress: as of :meth:`tvm_conv3d.runtime.ahead.Compilers.compile`.
    """
    found = [(_spec(call, module), call.packed_limit) for call in map(_Call.of, _convolutions(graph))]
    compilers.compile([(spec, limit) for spec, limit in found if spec is not None], progress)


def pack_convolutions(graph: Graph, module: torch.nn.Module) -> None:
    """Packs the weights of a graph's convolutions, before there are volumes: what packing takes is free for these.

    Weights that the graph itself computes are packed by the call.

    Args:
        graph: rewritten, its convolutions compiled.
        module: which its attributes are of.
    """
    for call in map(_Call.of, _convolutions(graph)):
        if STORE.nbytes >= _PACKED_AHEAD * STORE.max_bytes:
            return
        epilogue = call.epilogue
        if all(_is_held(node) for node in (call.weight, call.bias, *epilogue.batch_norm, epilogue.slope)):
            weight, bias, slope, *batch_norm = (
                _value(node, module) for node in (call.weight, call.bias, epilogue.slope, *epilogue.batch_norm)
            )
            values = epilogue._replace(batch_norm=batch_norm, residual=None, slope=slope)
            pack_weights(call.kinds, weight, bias, values, call.geometry, call.packed_limit)


def _convolutions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.target is FUSED_CONVOLUTION]


def _spec(call: _Call, module: torch.nn.Module) -> Conv3DSpec | None:
    """The problem of a fused convolution; None where it is not known before the call."""
    if not _is_held(call.epilogue.slope):
        return None
    return spec_of(call.kinds, call.epilogue.post_ops, _value(call.epilogue.slope, module), call.geometry)


def _is_held(node: Any) -> bool:
    """Whether the module holds what a node stands for, or there is none."""
    return not isinstance(node, Node) or node.op == "get_attr"


def _value(node: Any, module: torch.nn.Module) -> Any:
    return attrgetter(str(node.target))(module) if isinstance(node, Node) else node


def _kind(node: Node | None) -> tuple[torch.Size, torch.dtype] | None:
    of = None if node is None else info(node)
    return None if of is None else (torch.Size(of.shape), of.dtype)
