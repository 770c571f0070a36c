"""What a rewritten graph's convolutions need, made before it is called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Graph

from tvm_conv3d.runtime.ahead import Compilers
from tvm_conv3d.runtime.kept_weights import STORE
from tvm_conv3d.runtime.packed_limits import packed_limits
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.torch.graph.convolutions import Call, convolutions, is_held, value
from tvm_conv3d.torch.operators.cpu_fused_convolution import pack_weights, spec_of

#: The part of the memory for packed weights up to which they are packed ahead: beyond it the first might be forgotten
#: before they are read.
_PACKED_AHEAD = 0.5


def bound_convolutions(graph: Graph, module: torch.nn.Module, compilers: Compilers) -> None:
    """Gives a graph's convolutions limits of the bytes that their packed weights take, by the whole graph's time.

    Args:
        graph: rewritten; the convolutions' nodes have one more argument afterwards.
        module: which its attributes are of.
        compilers: make the plans among which is chosen.
    """
    nodes, calls = [], []
    for node in convolutions(graph):
        call = Call.of(node)
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
    found = [(_spec(call, module), call.packed_limit) for call in map(Call.of, convolutions(graph))]
    compilers.compile([(spec, limit) for spec, limit in found if spec is not None], progress)


def pack_convolutions(graph: Graph, module: torch.nn.Module) -> None:
    """Packs the weights of a graph's convolutions, before there are volumes: what packing takes is free for these.

    Weights that the graph itself computes are packed by the call.

    Args:
        graph: rewritten, its convolutions compiled.
        module: which its attributes are of.
    """
    for call in map(Call.of, convolutions(graph)):
        if STORE.nbytes >= _PACKED_AHEAD * STORE.max_bytes:
            return
        if all(map(is_held, call.weights)):
            pack_weights(call.kinds, *call.held(module), call.geometry, call.packed_limit)


def _spec(call: Call, module: torch.nn.Module) -> Conv3DSpec | None:
    """The problem of a fused convolution; None where it is not known before the call."""
    if not is_held(call.epilogue.slope):
        return None
    return spec_of(call.kinds, call.epilogue.post_ops, value(call.epilogue.slope, module), call.geometry)
