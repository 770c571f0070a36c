"""A rewritten graph as a function that is bound to its module's weights, for as long as these stay what they are.

What a convolution needs beside its volumes is looked up once: a call of the whole graph begins by looking whether the
weights are what they were, all of them in a row, and each convolution then is a kernel and the memory for its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime import exit_guard, threads
from tvm_conv3d.torch.graph import replay
from tvm_conv3d.torch.graph.convolutions import Call, is_held
from tvm_conv3d.torch.graph.guards import Guards
from tvm_conv3d.torch.operators.bound_convolution import BoundConvolution
from tvm_conv3d.torch.operators.cpu_fused_convolution import bound_call
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION

#: Calls without a bound function before one is made again, at most.
_LONGEST_WAIT = 64


class _Place(NamedTuple):
    """Where the module holds a tensor, and where that holds its elements."""

    container: Any
    key: Any
    tensor: torch.Tensor
    address: int
    strides: tuple[int, ...]

    def holds(self) -> bool:
        """Whether that is so still."""
        tensor = self.container[self.key]
        return tensor is self.tensor and tensor.data_ptr() == self.address and tensor.stride() == self.strides


class _Bound(NamedTuple):
    """A function of a module and of the graph's inputs, and what it is bound to.

    Attributes:
        run: the function.
        places: where all weights lie.
        convolutions: that are bound to theirs.
        threads: that the convolutions' code is for.
    """

    run: Callable[..., Any]
    places: list[_Place]
    convolutions: list[BoundConvolution]
    threads: int

    def holds(self) -> bool:
        """Whether it computes what the graph does, and nobody wants to see the graph's operators."""
        return (
            threads.get_num_threads() == self.threads
            and not torch.autograd._profiler_enabled()
            and all(place.holds() for place in self.places)
            and all(convolution.holds() for convolution in self.convolutions)
        )


class Replay:
    """A graph as a function of a module and of the graph's inputs, which returns the graph's outputs.

    Args:
        graph: rewritten.
        guards: which hold whenever it is called.
    """

    def __init__(self, graph: Graph, guards: Guards) -> None:
        self._graph = graph
        self._guards = guards
        self._run = replay.compiled(graph)
        self._bound: _Bound | None = None
        # calls since there was a bound function, and how many until there is one
        self._calls, self._wait = 0, 1

    def __call__(self, module: torch.nn.Module, *tensors: torch.Tensor) -> Any:
        bound = self._bound
        if bound is not None and bound.holds():
            with exit_guard.in_flight():
                return bound.run(module, *tensors)
        results = self._run(module, *tensors)
        self._calls += 1
        if self._calls >= self._wait and not torch.autograd._profiler_enabled():
            self._calls, self._wait = 0, min(2 * self._wait, _LONGEST_WAIT)
            self._bound = _bind(self._graph, module, self._guards)
        return results


def _bind(graph: Graph, module: torch.nn.Module, guards: Guards) -> _Bound | None:
    """The graph's function with all convolutions bound whose weights the module holds; None where there are none."""
    count, copied = threads.get_num_threads(), Graph()
    places: list[_Place] = []
    bound: list[BoundConvolution] = []
    nodes: dict[Node, Node] = {}
    for node in graph.nodes:
        made = nodes[node] = copied.node_copy(node, nodes.__getitem__)
        found = _bound_convolution(node, module, guards, count) if node.target is FUSED_CONVOLUTION else None
        if found is not None:
            convolution, its_places = found
            bound.append(convolution)
            places += its_places
            made.target, made.args = convolution, (made.args[0], Call.of(made).epilogue.residual)
    if not bound:
        return None
    for node in reversed(copied.nodes):
        if node.op == "get_attr" and not node.users:
            copied.erase_node(node)
    return _Bound(replay.compiled(copied), places, bound, count)


def _bound_convolution(
    node: Node, module: torch.nn.Module, guards: Guards, count: int
) -> tuple[BoundConvolution, list[_Place]] | None:
    call = Call.of(node)
    if not all(map(is_held, call.weights)):
        return None
    weight, bias, epilogue = call.held(module)
    tensors = [tensor for tensor in (weight, bias, epilogue.slope, *epilogue.batch_norm) if tensor is not None]
    places = [(guards.place_of(tensor), tensor) for tensor in tensors]
    found = bound_call(call.kinds, weight, bias, epilogue, call.geometry, call.packed_limit)
    if found is None or any(place is None for place, _ in places):
        return None
    rest = node.args[3 + len(epilogue) :]

    def general(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        return FUSED_CONVOLUTION(x, weight, bias, *epilogue._replace(residual=residual), *rest)

    held = [_Place(*place, tensor, tensor.data_ptr(), tensor.stride()) for place, tensor in places if place]
    return BoundConvolution(*found, count, general), held
