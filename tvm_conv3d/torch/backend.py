"""`torch.compile(model, backend="tvm_conv3d")`: the graphs of Dynamo, rewritten; inductor compiles the rest of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor.compile_fx import compile_fx

from tvm_conv3d.torch.graph.rewriting import rewrite
from tvm_conv3d.torch.graph.tensors import TensorInfo, set_info
from tvm_conv3d.torch.tracing_rules import trace_type_tests

_LOG = logging.getLogger(__name__)

# torch imports this module when it looks the backend up: before Dynamo traces
trace_type_tests()


def tvm_conv3d(graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Any:
    """The backend, which torch finds by its entry point.

    Where gradients are needed the graph goes to inductor as it is.

    Args:
        graph_module: of torch's functions, from Dynamo.
        example_inputs: of it.
        options: of inductor's `compile_fx`.

    Returns:
        What Dynamo calls.
    """
    if not (torch.is_grad_enabled() and any(_trains(value) for value in example_inputs)):
        graph_module = _rewritten(graph_module)
    return compile_fx(graph_module, list(example_inputs), **options)


def _rewritten(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with this package's operators, or as it is where that can't be."""
    graph = copy.deepcopy(graph_module.graph)
    _note_tensors(graph)
    try:
        reason = rewrite(graph)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _LOG.info("a graph goes to inductor as it is: %s", reason)
        return graph_module
    return torch.fx.GraphModule(graph_module, graph)


def _trains(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _note_tensors(graph: torch.fx.Graph) -> None:
    """Notes what Dynamo knows of the tensors."""
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.Tensor):
            set_info(node, TensorInfo.of(value, value.untyped_storage()._cdata))
