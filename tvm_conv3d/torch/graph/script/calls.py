"""Calls of ScriptModules that recorders see: torch shows modes nothing of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.jit._recursive import wrap_cpp_module
from torch.overrides import _get_current_function_mode

from tvm_conv3d.torch.graph.recording import Recorder
from tvm_conv3d.torch.graph.script.noting import noted


class ScriptCall:
    """A method of a ScriptModule, which a recorder around the call sees.

    Args:
        module: the ScriptModule.
        name: of the method.
    """

    def __init__(self, module: torch.jit.ScriptModule, name: str) -> None:
        self._module = module
        self._name = name
        self._method = module._c._get_method(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = _get_current_function_mode()
        if isinstance(mode, Recorder):
            return noted(mode, self._module, self._method, args, kwargs)
        return self._method(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptCall:
        return ScriptCall(copy.deepcopy(self._module, memo), self._name)


class _Copier:
    """Copies a ScriptModule whose calls are seen; torch's own copy would be one whose calls are not.

    Args:
        module: the ScriptModule.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module

    def __call__(self, memo: dict[int, Any]) -> torch.jit.ScriptModule:
        made = _copied(self._module)
        memo[id(self._module)] = made
        see_calls(made)
        for name in ("report", "forward"):
            # a forward that replays, and what it tells
            if name in vars(self._module):
                vars(made)[name] = copy.deepcopy(vars(self._module)[name], memo)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> _Copier:
        return _Copier(copy.deepcopy(self._module, memo))


def shared_copy(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule with the very parameters and buffers, whose calls recorders see."""
    made = _copied(module)
    for old, new in zip(module.modules(), made.modules(), strict=True):
        held = (*old.named_parameters(recurse=False), *old.named_buffers(recurse=False))
        for name, tensor in held if isinstance(new, torch.jit.ScriptModule) else ():
            new._c.setattr(name, tensor)
    see_calls(made)
    return made


def see_calls(module: torch.jit.ScriptModule) -> None:
    """Lets recorders see the calls of a ScriptModule and of its parts."""
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            vars(part).update({name: ScriptCall(part, name) for name in part._c._method_names()})
            vars(part)["__deepcopy__"] = _Copier(part)


def _copied(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Torch's own copy, whatever `copy.deepcopy` makes of the module."""
    return wrap_cpp_module(copy.deepcopy(module._c))
