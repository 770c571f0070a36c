"""Runs a script step by step, its tensors' functions by a host that sees each.

Control flow goes the way that this call's Python values decide. These come of shapes, of attributes, which the host is
told, and of constants; a value that comes of a tensor's elements is for the host to refuse.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils import _pytree as pytree

from tvm_conv3d.torch.graph.script import containers
from tvm_conv3d.torch.graph.script.functions import call_of
from tvm_conv3d.torch.graph.script.program import Block, Constant, RefusedError, Step

#: Values of attributes that stay what they are for as long as they are equal.
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class Part(NamedTuple):
    """A module within a script.

    Attributes:
        module: of `torch._C`.
        path: from the script's own module to it, as "encoder.conv"; empty for itself.
    """

    module: Any
    path: str

    def name_of(self, attribute: str) -> str:
        """The path to an attribute."""
        return f"{self.path}.{attribute}" if self.path else attribute


class Host(Protocol):
    """Who sees what a script does. Methods raise :class:`RefusedError` before anything is done that can't be noted."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function of tensors or of Python values."""

    def attribute(self, part: Part, name: str, value: Any) -> None:
        """Is told a tensor or plain value that an attribute has."""

    def constant(self, constant: Constant) -> None:
        """Is told a tensor that the script holds itself."""


class Interpreter:
    """Runs one script once.

    Args:
        host: who calls functions of tensors.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        #: Containers that a module or the script holds, by identity: what is changed in a copy of them would be lost.
        self._held: dict[int, Any] = {}

    def run(self, block: Block, inputs: Sequence[Any]) -> list[Any]:
        """The block's results.

        Args:
            block: the script's program.
            inputs: a :class:`Part` for the module, and the arguments.

        Raises:
            RefusedError: it does what can't be noted; nothing has been changed but its own values.
        """
        return self._block(block, inputs, ChainMap())

    def _block(self, block: Block, inputs: Sequence[Any], around: ChainMap[int, Any]) -> list[Any]:
        values = around.new_child(dict(zip(block.inputs, inputs, strict=True)))
        for step in block.steps:
            results = self._step(step, values)
            values.update(zip(step.outputs, results, strict=True))
            for number in step.ended:
                # volumes are let go as soon as nobody uses them
                values.pop(number, None)
        return [values[number] for number in block.outputs]

    def _step(self, step: Step, values: ChainMap[int, Any]) -> Sequence[Any]:
        given = [values[number] for number in step.inputs]
        if step.kind == "prim::If":
            return self._block(step.blocks[0 if given[0] else 1], (), values)
        if step.kind == "prim::Loop":
            return self._loop(step.blocks[0], given, values)
        if step.kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            return list(given[0])
        result = self._value(step, given)
        return () if not step.outputs else (result,) if len(step.outputs) == 1 else result

    def _loop(self, body: Block, given: Sequence[Any], values: ChainMap[int, Any]) -> Sequence[Any]:
        count, goes_on, *carried = given
        for number in range(count):
            if not goes_on:
                break
            goes_on, *carried = self._block(body, (number, *carried), values)
        return carried

    def _value(self, step: Step, given: list[Any]) -> Any:
        """The result of a step without blocks, or its results."""
        kind = step.kind
        if kind == "prim::Constant":
            return self._constant(step.detail)
        if kind == "prim::GetAttr":
            return self._attribute(given[0], step.detail)
        if kind in _STRUCTURE:
            return _STRUCTURE[kind](*given)
        if kind == "prim::RaiseException":
            raise RefusedError(f"it raises {given[0]!r}")
        if kind in _REFUSED:
            raise RefusedError(_REFUSED[kind])
        if given and isinstance(given[0], containers.CONTAINERS):
            if kind in containers.CHANGING:
                if id(given[0]) in self._held:
                    raise RefusedError(f"it changes a {type(given[0]).__name__} that the module holds")
                return containers.CHANGING[kind](*given)
            if kind in containers.READING:
                return containers.READING[kind](*given)
        function, args, kwargs = call_of(step, given)
        return self._host.call(function, args, kwargs)

    def _constant(self, constant: Constant) -> Any:
        if isinstance(constant.value, torch.Tensor):
            self._host.constant(constant)
        self._hold(constant.value)
        return constant.value

    def _attribute(self, part: Any, name: str) -> Any:
        if not isinstance(part, Part):
            raise RefusedError(f"it reads {name!r} of an object that is no module")
        value = part.module.getattr(name)
        if isinstance(value, torch._C.ScriptModule):
            return Part(value, part.name_of(name))
        leaves = [] if isinstance(value, torch.Tensor) else pytree.tree_leaves(value)
        if not all(isinstance(leaf, _PLAIN) for leaf in leaves):
            raise RefusedError(f"it reads {part.name_of(name)!r}, which holds more than plain values")
        self._host.attribute(part, name, value)
        self._hold(value)
        return value

    def _hold(self, value: Any) -> None:
        if isinstance(value, (list, dict, tuple)):
            self._held[id(value)] = value
            for each in value.values() if isinstance(value, dict) else value:
                self._hold(each)


def _unwrapped(value: Any) -> Any:
    if value is None:
        raise RefusedError("it unwraps None")
    return value


#: Steps that make or take apart Python's own values.
_STRUCTURE: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *values: list(values),
    "prim::TupleConstruct": lambda *values: values,
    "prim::DictConstruct": lambda *values: dict(zip(values[::2], values[1::2], strict=True)),
    "prim::TupleIndex": lambda values, index: values[index],
    "prim::Uninitialized": lambda: None,
    "prim::unchecked_cast": lambda value: value,
    "aten::_unwrap_optional": _unwrapped,
    "prim::unchecked_unwrap_optional": _unwrapped,
    "aten::__is__": lambda one, other: one is other,
    "aten::__isnot__": lambda one, other: one is not other,
    # the script itself has been run, and has warned
    "aten::warn": lambda *values: None,
}

_FOR_ONEDNN = "it was made by torch.jit.optimize_for_inference: accelerate the module that this was called with"

#: Steps that change or make what a replay would not, or that can't be seen, and why.
_REFUSED = {
    "prim::SetAttr": "it sets an attribute",
    "prim::CreateObject": "it makes an object of a class, as `with torch.no_grad()` does",
    "prim::CallMethod": "it calls a method of an interface",
    "prim::CallFunction": "it calls a function that can't be inlined",
    "prim::PythonOp": "it calls Python code that torch.jit ignores",
    "prim::fork": "it runs parts of itself apart",
    "prim::Print": "it prints",
    "aten::to_mkldnn": _FOR_ONEDNN,
    "prim::ConstantMKLDNNTensor": _FOR_ONEDNN,
}
