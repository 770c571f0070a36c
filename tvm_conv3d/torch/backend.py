"""`torch.compile(model, backend="tvm_conv3d")`: the graphs of Dynamo, rewritten, replayed or compiled by inductor."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor.compile_fx import compile_fx

from tvm_conv3d.torch.graph.lifted import LiftedReplay
from tvm_conv3d.torch.graph.rewriting import rewrite
from tvm_conv3d.torch.graph.telling import function_name, looks_at_memory
from tvm_conv3d.torch.graph.tensors import TensorInfo, set_info
from tvm_conv3d.torch.graph.unfused import has_chains
from tvm_conv3d.torch.tracing_rules import trace_type_tests

_LOG = logging.getLogger(__name__)

# torch imports this module when it looks the backend up: before Dynamo traces
trace_type_tests()


def tvm_conv3d(graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Any:
    """The backend, which torch finds by its entry point.

    Where gradients are needed the graph goes to inductor as it is. In inference one of known sizes is replayed as that
    of an accelerated module, with convolutions bound to their weights, unless inductor would save more by fusing what
    is left of torch's functions; all others are inductor's, too.

    Args:
        graph_module: of torch's functions, from Dynamo.
        example_inputs: of it.
        options: of inductor's `compile_fx`.

    Returns:
        What Dynamo calls.
    """
    if torch.is_grad_enabled() and any(_trains(value) for value in example_inputs):
        return compile_fx(graph_module, list(example_inputs), **options)
    rewritten = _rewritten(graph_module)
    known = rewritten is not graph_module and _may_be_replayed(graph_module.graph, example_inputs)
    if known and not options and not has_chains(rewritten.graph):
        return LiftedReplay(rewritten.graph, _is_static)
    return compile_fx(rewritten, list(example_inputs), **options)


def _may_be_replayed(graph: torch.fx.Graph, example_inputs: Sequence[Any]) -> bool:
    """Whether all of a graph is functions of plain tensors of known sizes on the CPU."""
    if torch.is_autocast_enabled("cpu"):
        return False
    plain = (torch.Tensor, torch.nn.Parameter)
    if any(type(value) not in plain or value.device.type != "cpu" for value in example_inputs):
        return False
    return all(map(_is_of_known_size, graph.nodes))


def _is_of_known_size(node: torch.fx.Node) -> bool:
    """Whether a node of Dynamo's graph gives tensors of known sizes and nothing else."""
    if node.op == "output":
        return True
    values = torch.utils._pytree.tree_leaves(node.meta.get("example_value"))
    tensors = all(isinstance(each, torch.Tensor) and all(isinstance(n, int) for n in each.shape) for each in values)
    return node.op in ("placeholder", "call_function", "call_method") and bool(values) and tensors


def _is_static(node: torch.fx.Node) -> bool:
    """Whether Dynamo knows an input for a module's parameter or buffer."""
    return "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def _rewritten(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with this package's operators, or as it is where that can't be."""
    graph = copy.deepcopy(graph_module.graph)
    _note_tensors(graph)
    try:
        reason = _looks_at_memory(graph) or rewrite(graph)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _LOG.info("a graph goes to inductor as it is: %s", reason)
        return graph_module
    return torch.fx.GraphModule(graph_module, graph)


def _looks_at_memory(graph: torch.fx.Graph) -> str | None:
    """Why a graph can't be rewritten that depends on the order of memory; None where it does not."""
    found = [node.target for node in graph.nodes if looks_at_memory(node.target)]
    return f"{function_name(found[0])} looks at the order of memory" if found else None


def _trains(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _note_tensors(graph: torch.fx.Graph) -> None:
    """Notes what Dynamo knows of the tensors."""
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor):
            set_info(node, TensorInfo.of(value, value.untyped_storage()._cdata))
