"""A rewritten graph whose weights are among its inputs, as Dynamo's are: replayed like that of a module.

The weights are held under names of their own, by aliases, so that convolutions are bound to them
(:mod:`tvm_conv3d.torch.graph.binding`). Shapes, types and Python's values are for the caller to guard.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime.ahead import Compilers
from tvm_conv3d.support import heap
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.torch.graph.ahead import bound_convolutions, compile_convolutions, pack_convolutions
from tvm_conv3d.torch.graph.binding import Replay
from tvm_conv3d.torch.graph.convolutions import Call, convolutions
from tvm_conv3d.torch.graph.guards import Guards

#: Sets of weights that a graph is bound to: modules of one class share a graph.
_MAX_SETS = 4


class _Bound(NamedTuple):
    """A graph's function of a set of weights.

    Attributes:
        run: the function.
        weights: what holds aliases of them.
        lives: lets all this go as soon as the weights do; None where there are none.
    """

    run: Replay
    weights: torch.nn.Module
    lives: weakref.ref[torch.Tensor] | None


class LiftedReplay:
    """A graph as a function of all its inputs, which returns the graph's outputs.

    Args:
        graph: rewritten, without attributes; it is changed.
        may_stay: whether an input is likely to be the same tensor at each call.
    """

    def __init__(self, graph: Graph, may_stay: Callable[[Node], bool]) -> None:
        weights = {weight for node in convolutions(graph) for weight in Call.of(node).weights}
        inputs = graph.find_nodes(op="placeholder")
        held = [number for number, node in enumerate(inputs) if node in weights and may_stay(node)]
        self._names = {number: f"weight_{number}" for number in held}
        self._volumes = [number for number in range(len(inputs)) if number not in self._names]
        for number, name in self._names.items():
            _make_attribute(graph, inputs[number], name)
        self._graph = graph
        self._compiled = False
        self._bound: dict[Hashable, _Bound] = {}
        self._lock = ForkSafeLock()

    def __call__(self, *inputs: Any) -> Any:
        # aliases keep their memory, in which no other tensor can be therefore
        key = tuple([(inputs[number].data_ptr(), inputs[number].stride()) for number in self._names])
        found = self._bound.get(key)
        if found is None:
            with self._lock:
                found = self._bound.get(key) or self._bind(key, inputs)
        return found.run(found.weights, *[inputs[number] for number in self._volumes])

    def _bind(self, key: Hashable, inputs: Sequence[Any]) -> _Bound:
        """Binds the graph to the weights among its inputs."""
        holder, lives = torch.nn.Module(), None
        for number, name in self._names.items():
            vars(holder)[name] = inputs[number].data
            lives = weakref.ref(inputs[number], lambda _: self._bound.pop(key, None))
        if not self._compiled:
            with Compilers() as compilers:
                bound_convolutions(self._graph, holder, compilers)
                compile_convolutions(self._graph, holder, compilers)
            self._compiled = True
        pack_convolutions(self._graph, holder)
        heap.give_back()
        if len(self._bound) >= _MAX_SETS:
            self._bound.pop(next(iter(self._bound)), None)
        self._bound[key] = found = _Bound(Replay(self._graph, holder, Guards(holder)), holder, lives)
        return found


def _make_attribute(graph: Graph, node: Node, name: str) -> None:
    """Makes an input an attribute."""
    with graph.inserting_before(node):
        made = graph.create_node("get_attr", name)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
