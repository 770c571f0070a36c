"""Which convolutions a rewritten graph will call: what can be compiled before it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime.ahead import compile_ahead
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.cpu_fused_convolution import spec_of
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION, split_arguments


def compile_convolutions(
    graph: Graph, module: torch.nn.Module, progress: Callable[[int, int], None] | None = None
) -> None:
    """Compiles what a graph's convolutions need, by all CPUs.

    Args:
        graph: rewritten.
        module: which its attributes are of.
        progress: as of :func:`tvm_conv3d.runtime.ahead.compile_ahead`.
    """
    found = (_spec(node.args, module) for node in graph.nodes if node.target is FUSED_CONVOLUTION)
    compile_ahead([spec for spec in found if spec is not None], progress)


def _spec(arguments: Sequence[Any], module: torch.nn.Module) -> Conv3DSpec | None:
    """The problem of a fused convolution's arguments; None where it is not known before the call."""
    x, weight, bias, *rest = arguments
    epilogue, geometry = split_arguments(rest)
    slope = None
    if isinstance(epilogue.slope, Node):
        if epilogue.slope.op != "get_attr":
            return None
        slope = attrgetter(str(epilogue.slope.target))(module)
    kinds = tuple(map(_kind, (x, weight, bias, epilogue.residual, *epilogue.batch_norm)))
    return spec_of(kinds, epilogue.post_ops, slope, geometry)


def _kind(node: Node | None) -> tuple[torch.Size, torch.dtype] | None:
    of = None if node is None else info(node)
    return None if of is None else (torch.Size(of.shape), of.dtype)
