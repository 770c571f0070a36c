"""Notes what a script does: after torch has run it, it is run once more, function by function, before a recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import _pop_mode_temporarily
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from tvm_conv3d.torch.graph import in_place, replay, state
from tvm_conv3d.torch.graph.recording import Recorder
from tvm_conv3d.torch.graph.script.interpreter import Interpreter, Part
from tvm_conv3d.torch.graph.script.program import Constant, RefusedError, program


def noted(
    recorder: Recorder, module: torch.jit.ScriptModule, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls a method of a ScriptModule, and has a recorder see the functions that it calls.

    What the script itself gives is the judge of what is noted.

    Args:
        recorder: which is told why, where the script can't be noted.
        module: the ScriptModule.
        method: a `torch._C.ScriptMethod` of it.
        args, kwargs: of the call.

    Returns:
        What the method returns; its tensors are known to the recorder where it can be noted.

    Raises:
        What the script raises.
    """
    # what is called here the recorder is told, or is not to see
    with _pop_mode_temporarily():
        result = method(*args, **kwargs)
        return result if recorder.reason is not None else _known(recorder, module, method, args, kwargs, result)


def _known(
    recorder: Recorder,
    module: torch.jit.ScriptModule,
    method: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> Any:
    """A result with tensors that the recorder knows; that of the script itself where it can't be noted."""
    leaves, structure = pytree.tree_flatten(result)
    try:
        found = _again(recorder, module, method, args, kwargs)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        reason = replay.agrees(found, leaves, given)
    except Exception as error:
        # whatever a script does that is not known
        reason = str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
    if reason is not None:
        recorder.refuse(f"the script of {module.original_name} can't be noted: {reason}")
        return result
    return pytree.tree_unflatten(found, structure)


def _again(
    recorder: Recorder, module: torch.jit.ScriptModule, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """The leaves of what the script returns."""
    path = recorder.path_of(module)
    if path is None:
        raise RefusedError("it is no part of the module")
    parts = [part._c for part in module.modules() if isinstance(part, torch.jit.ScriptModule)]
    if any(part._get_forward_hooks() or part._get_forward_pre_hooks() for part in parts):
        raise RefusedError("it has hooks")
    inputs = _bound(method.schema, args, kwargs)
    block = program(method.inlined_graph)
    results = Interpreter(_Seen(recorder, path, inputs)).run(block, (Part(method.owner, ""), *inputs))
    return pytree.tree_leaves(results[0] if len(results) == 1 else results)


def _bound(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments behind the module, as a script gets them: containers of its own, and floats where it has floats."""
    # containers of its own, as scripts get copies
    args, kwargs = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
    values = []
    for number, argument in enumerate(schema.arguments[1:]):
        value = args[number] if number < len(args) else kwargs.get(argument.name, argument.default_value)
        is_float = argument.type.kind() == "FloatType" and isinstance(value, int)
        values.append(float(value) if is_float else value)
    return values


class _Seen:
    """The :class:`~tvm_conv3d.torch.graph.script.interpreter.Host` of one run.

    Tensors that are made of Python's values alone, as traces have them of sizes, may become Python's values again.

    Args:
        recorder: sees all.
        path: of the ScriptModule in the recorder's module.
        inputs: of the script.
    """

    def __init__(self, recorder: Recorder, path: str, inputs: list[Any]) -> None:
        self._recorder = recorder
        self._path = path
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        self._given = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._fixed = WeakIdKeyDictionary()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function, and notes it."""
        written = in_place.written(function, args, kwargs)
        if isinstance(written, torch.Tensor) and written.untyped_storage()._cdata in self._given:
            raise RefusedError("it writes into its arguments")
        self._refuse(self._recorder.why_not(function, args, kwargs))
        result = function(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        fixed = all(tensor in self._fixed for tensor in tensors)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if made or not fixed:
            self._recorder.note(function, args, kwargs, result, short_lived=fixed and written is None)
            self._refuse(self._recorder.reason)
        if fixed:
            self._fixed.update((tensor, True) for tensor in made)
        elif isinstance(written, torch.Tensor):
            self._unfix(written)
        return result

    def attribute(self, part: Part, name: str, value: Any) -> None:
        """Notes that the call depends on an attribute."""
        self._recorder.read(state.Read(part.module, name, value))
        if isinstance(value, torch.Tensor):
            path = part.name_of(name)
            self._recorder.hold(f"{self._path}.{path}" if self._path else path, value)

    def constant(self, constant: Constant) -> None:
        """Notes a tensor that the script holds itself, whose values never change."""
        self._recorder.hold_constant(constant.name.removeprefix("self."), constant.value)
        self._fixed[constant.value] = True

    def _unfix(self, written: torch.Tensor) -> None:
        """Forgets all that share memory with what is written."""
        place = written.untyped_storage()._cdata
        for tensor in [each for each in self._fixed if each.untyped_storage()._cdata == place]:
            del self._fixed[tensor]

    @staticmethod
    def _refuse(reason: str | None) -> None:
        if reason is not None:
            raise RefusedError(reason)
