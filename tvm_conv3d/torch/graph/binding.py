"""A rewritten graph as a function that is bound to its module's weights, for as long as these stay what they are.

What a convolution needs beside its volumes is looked up once: a call of the whole graph begins by looking whether the
weights are what they were, all of them in a row, and each convolution then is a kernel and the memory for its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime import exit_guard, output_pool, threads
from tvm_conv3d.torch.graph import replay
from tvm_conv3d.torch.graph.convolutions import Call, convolutions, held_in, is_held, value
from tvm_conv3d.torch.graph.guards import Guards
from tvm_conv3d.torch.graph.placement import place_volumes
from tvm_conv3d.torch.graph.rewriting import FRESH
from tvm_conv3d.torch.operators.bound_convolution import BoundConvolution, OverwrittenError
from tvm_conv3d.torch.operators.cpu_fused_convolution import bound_call
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION
from tvm_conv3d.torch.operators.normalization import NORMALIZATION_

#: Calls without a bound function before one is made again, at most.
_LONGEST_WAIT = 64

#: Operators that leave nothing behind which shares memory with what they read.
_READING = FRESH | {NORMALIZATION_}


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
        complete: whether all convolutions are bound whose weights the module holds.
    """

    run: Callable[..., Any]
    places: list[_Place]
    convolutions: list[BoundConvolution]
    threads: int
    complete: bool

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
        module: which it is called with.
        guards: which hold whenever it is called.
    """

    def __init__(self, graph: Graph, module: torch.nn.Module, guards: Guards) -> None:
        self._graph = graph
        self._guards = guards
        self._run = replay.compiled(graph)
        # weights that are packed ahead are bound at once: no call takes more memory than the later ones
        self._bound = _bind(graph, module, guards)
        # calls since there was a bound function, and how many until there is one
        self._calls, self._wait = 0, 1

    def __call__(self, module: torch.nn.Module, *tensors: torch.Tensor) -> Any:
        bound = self._bound
        if bound is not None and bound.holds():
            # where a residual operand is lost the operators begin anew
            with contextlib.suppress(OverwrittenError), exit_guard.in_flight():
                results = bound.run(module, *tensors)
                if not bound.complete and self._wait < _LONGEST_WAIT:
                    # what calls compile and pack is bound from then on, too
                    self._bind_again(module)
                return results
        results = self._run(module, *tensors)
        self._bind_again(module)
        return results

    def _bind_again(self, module: torch.nn.Module) -> None:
        """Makes a bound function anew, the more seldom the more often it was made."""
        self._calls += 1
        if self._calls >= self._wait and not torch.autograd._profiler_enabled():
            self._calls, self._wait = 0, min(2 * self._wait, _LONGEST_WAIT)
            self._bound = _bind(self._graph, module, self._guards)
            # its volumes lie in one piece, which the operators' own places are too small for
            output_pool.release()


def _bind(graph: Graph, module: torch.nn.Module, guards: Guards) -> _Bound | None:
    """The graph's function with all convolutions bound whose weights the module holds; None where there are none."""
    count, copied = threads.get_num_threads(), Graph()
    places: list[_Place] = []
    bound: list[BoundConvolution] = []
    nodes: dict[Node, Node] = {}
    seen: set[Node] = set()
    for node in graph.nodes:
        seen.add(node)
        made = nodes[node] = copied.node_copy(node, nodes.__getitem__)
        found = None
        if node.target is FUSED_CONVOLUTION:
            found = _bound_convolution(node, module, guards, count, _overwrites(node, seen))
        if found is not None:
            convolution, its_places = found
            bound.append(convolution)
            places += its_places
            made.target, made.args = convolution, (made.args[0], Call.of(made).epilogue.residual)
    if not bound:
        return None
    for node in reversed(copied.nodes):
        if is_held(node) and not node.users:
            copied.erase_node(node)
    place_volumes(copied)
    complete = len(bound) == sum(all(map(is_held, Call.of(node).weights)) for node in convolutions(graph))
    return _Bound(replay.compiled(copied), places, bound, count, complete)


def _bound_convolution(
    node: Node, module: torch.nn.Module, guards: Guards, count: int, over: bool
) -> tuple[BoundConvolution, list[_Place]] | None:
    call = Call.of(node)
    if not all(map(is_held, call.weights)):
        return None
    weight, bias, epilogue = call.held(module)
    tensors = [value(held_in(each), module) for each in call.weights if each is not None]
    places = [(guards.place_of(tensor), tensor) for tensor in tensors]
    found = bound_call(call.kinds, weight, bias, epilogue, call.geometry, call.packed_limit, whole=tensors[0])
    if found is None or any(place is None for place, _ in places):
        return None
    rest = node.args[3 + len(epilogue) :]

    def general(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        return FUSED_CONVOLUTION(x, weight, bias, *epilogue._replace(residual=residual), *rest)

    held = [_Place(*place, tensor, tensor.data_ptr(), tensor.stride()) for place, tensor in places if place]
    return BoundConvolution(*found, count, general, over), held


def _overwrites(node: Node, seen: Set[Node]) -> bool:
    """Whether nobody sees a convolution's residual operand any more, but the convolution itself.

    Args:
        node: the convolution.
        seen: all nodes up to it.
    """
    residual = Call.of(node).epilogue.residual
    if residual is None or residual.target not in FRESH or residual is node.args[0]:
        return False
    return all(user in seen and user.target in _READING for user in residual.users)
