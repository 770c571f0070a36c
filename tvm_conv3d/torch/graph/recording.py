"""A module's call as a graph: the torch functions that it calls for inputs of these shapes, in their order.

The module runs once, by torch itself, under a mode that sees each function (`torch.overrides.TorchFunctionMode`).
Python's own values are noted as they are, so a recording holds for inputs of the same shapes, types and strides, and
for as long as the module's attributes are the same (:mod:`tvm_conv3d.torch.graph.guards`).
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Graph, Node
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from tvm_conv3d.torch.graph import in_place, slabs, state
from tvm_conv3d.torch.graph.telling import function_name, gives_shape_by_values, is_getter, looks_at_memory, tells_form
from tvm_conv3d.torch.graph.tensors import Held, TensorInfo, info, set_info

#: What arguments of recorded functions may be beside tensors and containers.
_PLAIN = (
    str,
    int,
    float,
    bool,
    complex,
    type(None),
    type(...),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)

#: Functions of Python around builtins, of which neither arguments nor a place in a module are known, as what they do.
_WRAPPERS = {torch.Tensor.__pow__: torch.pow, torch.Tensor.__ipow__: torch.Tensor.pow_}

_SHORT_LIVED = "tvm_conv3d.short_lived"

#: Why a call can't be replayed that changes more than tensors.
CHANGES = "it changes what its parts hold"

#: A container and a key of it: the `vars` of a part of a module or of an object in it, or a list or dict.
Place = tuple[Any, Any]


@dataclass(frozen=True)
class Recording:
    """What a module did.

    Attributes:
        result: of the call.
        graph: of tensors in, one placeholder each; out come the result's leaves, and behind them what is left in
            `places`. None where it can't be replayed.
        structure: of the result.
        places: where the call leaves tensors for later: attributes, or elements of lists and dicts in attributes.
        reads: attributes of ScriptModules that it looked at.
        reason: why it can't be replayed.
    """

    result: Any
    graph: Graph | None
    structure: pytree.TreeSpec
    places: Sequence[Place]
    reads: Sequence[state.Read]
    reason: str | None


def record(module: torch.nn.Module, call: Callable[[], Any], inputs: Sequence[torch.Tensor]) -> Recording:
    """Calls the module, and notes what it did.

    Args:
        module: whose parameters, buffers and tensors in attributes the graph refers to by their names.
        call: the call of its `forward`.
        inputs: the tensors among its arguments.

    Raises:
        What the module raises.
    """
    recorder = Recorder(module, inputs)
    # those of the module itself are called around its `forward`
    parts = [(name, part) for name, part in module.named_modules() if part is not module]
    hooked = [name for name, part in parts if part._forward_hooks or part._forward_pre_hooks]
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        hooked.append("all modules")
    if hooked:
        recorder.refuse(f"there are hooks on {hooked[0]}")
    before, drawn = list(state.contents(module)), _random_state()
    with recorder:
        result = call()
    if _random_state() != drawn:
        recorder.refuse("it draws random numbers")
    places, left = _changes(before, list(state.contents(module)), recorder)
    leaves, structure = pytree.tree_flatten(result)
    graph = recorder.finish([*leaves, *left])
    return Recording(result, graph, structure, places, recorder.reads, recorder.reason)


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index]


def _changes(before: Any, after: Any, recorder: Recorder) -> tuple[list[Place], list[torch.Tensor]]:
    """Where the call left tensors, and these; anything else that it changed would be lost in a replay."""
    places, tensors = [], []
    same = [id(container) for container, _ in before] == [id(container) for container, _ in after]
    if not same or any(old.keys() != new.keys() for (_, old), (_, new) in zip(before, after, strict=True)):
        recorder.refuse(CHANGES)
        return [], []
    for (container, old), (_, new) in zip(before, after, strict=True):
        for key, value in new.items():
            was = old[key]
            if value is was or (isinstance(value, state.VALUES) and type(value) is type(was) and value == was):
                continue
            if isinstance(value, torch.Tensor) and type(container) in (list, dict):
                places.append((container, key))
                tensors.append(value)
            else:
                recorder.refuse(f"{CHANGES}: {key!r}")
    return places, tensors


class Recorder(TorchFunctionMode):
    """The mode that notes functions.

    Args:
        module: as of :func:`record`.
        inputs: as of :func:`record`.
    """

    def __init__(self, module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.reason: str | None = None
        self._reads: dict[tuple[Any, str], state.Read] = {}
        self._graph = Graph()
        self._nodes = WeakIdKeyDictionary()
        self._storages = 0
        self._given = {tensor.untyped_storage()._cdata for tensor in inputs}
        for number, tensor in enumerate(inputs):
            self._know(tensor, self._graph.placeholder(f"input_{number}"))
        self._names: dict[int, tuple[str, torch.Tensor]] = {
            id(tensor): (name, tensor) for name, tensor in reversed(list(_held(module)))
        }
        self._parts = {id(part): name for name, part in module.named_modules()}
        self._constants: dict[int, Held] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = _WRAPPERS.get(func, func)
        call = (func, args, kwargs or {})
        self._try(lambda: self.refuse(self.why_not(*call)), func)
        result = slabs.call(*call)
        self._try(lambda: self.note(*call, result), func)
        return result

    def _try(self, noting: Callable[[], None], func: Any) -> None:
        if self.reason is None:
            try:
                noting()
            except Exception as error:
                # whatever torch's functions take and return: what is not known is not replayed
                self.refuse(f"{function_name(func)} can't be noted: {type(error).__name__}: {error}")

    def refuse(self, reason: str | None) -> None:
        """Notes why there will be no graph; the first reason counts."""
        self.reason = self.reason or reason

    def finish(self, leaves: Sequence[Any]) -> Graph | None:
        """The graph, whose outputs are these leaves of a result."""
        outputs = self._arguments(leaves)
        if self.reason is not None:
            return None
        self._graph.output(outputs)
        for node in reversed(self._graph.nodes):
            if node.meta.get(_SHORT_LIVED) and not node.users:
                self._graph.erase_node(node)
        return self._graph

    @property
    def reads(self) -> list[state.Read]:
        """Attributes of ScriptModules that the call depends on."""
        return list(self._reads.values())

    def read(self, read: state.Read) -> None:
        """Is told an attribute of a ScriptModule that the call depends on."""
        self._reads.setdefault((read.owner, read.name), read)

    def path_of(self, part: torch.nn.Module) -> str | None:
        """The name of a part of the module; None where it is none."""
        return self._parts.get(id(part))

    def hold(self, name: str, tensor: torch.Tensor) -> None:
        """Is told the name of a tensor that the module holds where Python does not see it."""
        self._names.setdefault(id(tensor), (name, tensor))

    def hold_constant(self, name: str, tensor: torch.Tensor) -> None:
        """Is told a tensor that has no name in the module."""
        self._constants.setdefault(id(tensor), Held(tensor, name))

    def why_not(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why a call can't be replayed, as far as that is known before it is made."""
        if torch.is_autocast_enabled("cpu"):
            return "autocast"
        name = function_name(func)
        if looks_at_memory(func):
            return f"{name} looks at the order of memory"
        if gives_shape_by_values(func, args, kwargs):
            return f"{name} gives a shape that depends on values"
        written = in_place.written(func, args, kwargs)
        if written is not None and written.untyped_storage()._cdata in self._foreign():
            return f"{name} writes into an input, a parameter or a buffer"
        return None

    def note(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, short_lived: bool = False
    ) -> None:
        """Notes a call.

        Args:
            func, args, kwargs, result: of the call, of which :meth:`why_not` knows nothing bad.
            short_lived: whether it may be forgotten where the graph has no use for the result.
        """
        name = function_name(func)
        tells = not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result))
        if tells and func not in in_place.SETTERS:
            if not tells_form(func):
                self.refuse(f"{name} makes a Python value of a tensor, on which what follows may depend")
            return None
        given = self._arguments(args), self._arguments(kwargs)
        if self.reason is not None:
            return None
        if is_getter(func):
            node = self._graph.call_function(getattr, (*given[0][:1], name))
        else:
            node = self._graph.call_function(func, *given)
        node.meta[_SHORT_LIVED] = short_lived
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        return self._name_results(node, result, tensors)

    def _name_results(self, node: Node, result: Any, given: Sequence[torch.Tensor]) -> None:
        if result is None:
            # it is called for what it writes
            return None
        if isinstance(result, torch.Tensor):
            self._know(result, node, given)
            return None
        if not isinstance(result, (tuple, list)):
            return self.refuse(f"{node.name} returns a {type(result).__name__}")
        for number, part in enumerate(result):
            if isinstance(part, (torch.Tensor, tuple, list)):
                self._name_results(self._graph.call_function(operator.getitem, (node, number)), part, given)
        return None

    def _know(self, tensor: torch.Tensor, node: Node, given: Iterable[torch.Tensor] = ()) -> None:
        """Notes which node a tensor comes of, and whose memory it shares."""
        place = tensor.untyped_storage()._cdata
        shared = [info(self._nodes[other]) for other in given if other.untyped_storage()._cdata == place]
        if not shared:
            self._storages += 1
        number = shared[0].storage if shared and shared[0] is not None else self._storages
        self._nodes[tensor] = set_info(node, TensorInfo.of(tensor, number))

    def _foreign(self) -> set[int]:
        """Memory that is not the call's own."""
        tensors = [tensor for _, tensor in self._names.values()] + [held.tensor for held in self._constants.values()]
        return self._given.union(tensor.untyped_storage()._cdata for tensor in tensors)

    def _arguments(self, value: Any) -> Any:
        """Arguments with nodes in place of tensors."""
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, (tuple, list)):
            return list(map(self._arguments, value)) if isinstance(value, list) else tuple(map(self._arguments, value))
        if isinstance(value, Mapping):
            return {key: self._arguments(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._arguments, (value.start, value.stop, value.step)))
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, _PLAIN):
            self.refuse(f"an argument of type {type(value).__name__}")
        return value

    def _node(self, tensor: torch.Tensor) -> Node | None:
        known = self._nodes.get(tensor)
        if known is None and id(tensor) in self._names:
            name, _ = self._names[id(tensor)]
            self._know(tensor, self._graph.get_attr(name))
            known = self._nodes[tensor]
        if known is None and id(tensor) in self._constants:
            known = self._graph.call_function(self._constants[id(tensor)])
            self._know(tensor, known)
        if known is None:
            self.refuse(
                "a tensor that is neither an input, held by the module, nor made by torch's functions; a function of "
                "torch.jit.script shows none of them: call it uncompiled"
            )
        return known


def _held(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and other tensors in attributes, by their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}" if path else name, value
