"""What a recording depends on beside its inputs: the parts of a module and all that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from operator import is_, itemgetter
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from tvm_conv3d.torch.graph import state


class Guards:
    """Whether a module is what it was; looked at before each replay, in about a microsecond a part.

    Plain values stay equal, all else the same objects. Tensors may be others of the same shape and type, as a replay
    looks them up; but where two names had one tensor, that must stay so.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._sizes: list[tuple[Sized, int]] = []
        self._values: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._objects: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._tensors: list[tuple[Any, Any, torch.Size, torch.dtype]] = []
        self._ties: list[tuple[Any, Any, Any, Any]] = []
        self._places: dict[int, tuple[Any, Any]] = {}
        for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
            self._watch(hooks, hooks)
        for container, items in state.contents(module):
            self._watch(container, items)

    def _watch(self, container: Any, items: Any) -> None:
        self._sizes.append((container, len(container)))
        if isinstance(container, (set, frozenset)):
            # elements are their own keys: with the number of them, that all are there tells
            self._values += [(frozenset(container).__le__, container, True)] if container else []
            return
        values: list[Any] = []
        objects: list[Any] = []
        for key, value in items.items():
            if isinstance(value, torch.Tensor):
                self._watch_tensor(container, key, value)
            else:
                (values if isinstance(value, state.VALUES) else objects).append(key)
        for keys, table in ((values, self._values), (objects, self._objects)):
            if keys:
                # a tuple of one key, too
                look = itemgetter(*keys, keys[0])
                table.append((look, container, look(container)))

    def watch(self, reads: Sequence[state.Read]) -> None:
        """Watches attributes of ScriptModules, too, which no container of Python's holds."""
        for read in reads:
            if isinstance(read.value, torch.Tensor):
                self._watch_tensor(read, read.name, read.value)
            else:
                self._values.append((itemgetter(read.name), read, read.value))

    def _watch_tensor(self, container: Any, key: Any, tensor: torch.Tensor) -> None:
        place = self._places.setdefault(id(tensor), (container, key))
        if place[0] is container and place[1] == key:
            self._tensors.append((container, key, tensor.shape, tensor.dtype))
        else:
            # a replay looks it up under one of its names
            self._ties.append((container, key, *place))

    def place_of(self, tensor: torch.Tensor) -> tuple[Any, Any] | None:
        """Container and key under which a tensor is looked at; None where it is not."""
        return self._places.get(id(tensor))

    def hold(self) -> bool:
        """Whether all is as it was."""
        try:
            return (
                all(len(container) == size for container, size in self._sizes)
                and all(look(container) == values for look, container, values in self._values)
                and all(all(map(is_, look(container), objects)) for look, container, objects in self._objects)
                and all(self._is_like(*watched) for watched in self._tensors)
                and all(one[key] is other[name] for one, key, other, name in self._ties)
            )
        except Exception:
            # something is gone, or is of another kind
            return False

    @staticmethod
    def _is_like(container: Any, key: Any, shape: torch.Size, dtype: torch.dtype) -> bool:
        tensor = container[key]
        return tensor.shape == shape and tensor.dtype == dtype
