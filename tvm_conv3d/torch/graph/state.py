"""What a module holds beside its parameters: all that its Python code may look at or change."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

#: What torch keeps in each module, and no code of users looks at.
_INTERNAL = frozenset(vars(torch.nn.Module())) - {"training", "_modules", "_parameters", "_buffers"}

#: Tables of hooks; those of the module itself are called around its `forward`.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

#: Containers within containers that are looked into.
_DEPTH = 4

#: Values that are the same where they are equal.
VALUES = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)

#: Objects that are not looked into.
_WHOLE = (
    torch.nn.Module,
    torch.Tensor,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)


@dataclass(frozen=True)
class Read:
    """An attribute of a ScriptModule that a call looked at; torch keeps these out of Python's sight.

    Attributes:
        owner: the module of `torch._C`.
        name: of the attribute.
        value: a tensor, or plain values.
    """

    owner: Any
    name: str
    value: Any

    def __getitem__(self, name: str) -> Any:
        """An attribute of the module as it is now."""
        return self.owner.getattr(name)


def contents(module: torch.nn.Module) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """All containers that a module's parts hold, each with what is in it by key.

    Containers are the `vars` of the parts and of objects in their attributes, lists, dicts, deques and sets.
    """
    known: set[int] = set()
    for part in module.modules():
        held = vars(part)
        inside = {name: value for name, value in held.items() if name not in _INTERNAL and not _is_ours(value)}
        yield held, inside
        for value in inside.values():
            yield from _inside(value, known, _DEPTH)
        if part is not module:
            yield from ((held[name], dict(held[name])) for name in HOOKS)


def _is_ours(value: Any) -> bool:
    """Whether an attribute is this package's, as a region or its report, which change with calls."""
    return type(value).__module__.startswith("tvm_conv3d.torch")


def _inside(value: Any, known: set[int], depth: int) -> Iterator[tuple[Any, dict[Any, Any]]]:
    found = _items(value) if depth else None
    if found is None or id(value) in known:
        return
    known.add(id(value))
    container, items = found
    yield container, items
    # of objects what settings need: others may hold a whole program
    left = depth - 1 if isinstance(value, (dict, list, deque, set, frozenset, tuple)) else depth - 2
    for each in items.values():
        yield from _inside(each, known, max(0, left))


def _items(value: Any) -> tuple[Any, dict[Any, Any]] | None:
    """A container and its items by key; None where a value is none."""
    if isinstance(value, dict):
        return value, dict(value)
    if isinstance(value, (list, deque)):
        return value, dict(enumerate(value))
    if isinstance(value, (set, frozenset)):
        return value, {each: each for each in value}
    if isinstance(value, tuple):
        return value, dict(enumerate(value))
    if isinstance(value, _WHOLE) or not hasattr(value, "__dict__"):
        return None
    return vars(value), dict(vars(value))
