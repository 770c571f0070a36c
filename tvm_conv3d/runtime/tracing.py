"""Calls by tools that record what is computed: torch.compile goes round a layer, the others are told why they can't.

No library is imported here: what its users have not loaded can't have made an input.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Where Dynamo's hook, which sees each frame of Python before it runs, is set.
_HOOK = "torch._C._dynamo.eval_frame"


class Door(NamedTuple):
    """What users call, and what they are told to call instead.

    Attributes:
        title: begins a sentence; with a place for a name.
        in_torch: where a tool of torch's records.
        in_keras: where a model of Keras is made.
        shapes: where shapes only are known.
    """

    title: str
    in_torch: str
    in_keras: str
    shapes: str


LAYER = Door(
    "Layer '{}'",
    "Put a tvm_conv3d.torch.Conv3d in its place: its weight is `layer.get_weights()[0].transpose(4, 3, 0, 1, 2)`, "
    "its input in channels_first.",
    "Keep keras.layers.Conv3D in the model, and call `Conv3D.from_keras(layer)` with arrays.",
    "`layer.compute_output_shape(x.shape)` tells the result's.",
)

FUNCTION = Door(
    "tvm_conv3d.{}",
    "Put a tvm_conv3d.torch.Conv3d in its place: its weight is `w.permute(4, 3, 0, 1, 2)`, its input in "
    "channels_first.",
    "Keep keras.layers.Conv3D in the model, and call this with arrays.",
    "Call it with a tensor that has memory.",
)


class _Untraced(contextlib.ContextDecorator):
    """Keeps Dynamo from what runs inside.

    Dynamo leaves frames of the standard library alone, and such is the one that runs around a decorated function.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __enter__(self) -> None:
        hook = sys.modules.get(_HOOK)
        before = hook.set_eval_frame(None) if hook is not None else None
        self._of_thread.__dict__.setdefault("before", []).append((hook, before))

    def __exit__(self, *_: object) -> None:
        hook, before = self._of_thread.before.pop()
        if hook is not None:
            hook.set_eval_frame(before)


def untraced(function: _Function, what: str = "a layer of tvm_conv3d") -> _Function:
    """`function` as one that torch.compile runs as it is, between two graphs; `what` is its name in messages."""
    outside = _Untraced()(function)
    outside._torchdynamo_disable = True  # type: ignore[attr-defined]
    outside._torchdynamo_disable_msg = f"{what} runs compiled code of its own"  # type: ignore[attr-defined]
    return outside


class _Refusal(NamedTuple):
    """Why an input can't be taken.

    Attributes:
        error: the exception's type: TypeError where there are no numbers, RuntimeError where a tool records them.
        why: goes on after the door's title.
        way: what to do instead.
    """

    error: type[Exception]
    why: str
    way: str


def check(value: Any, name: str, door: Door = LAYER) -> None:
    """Makes sure that `value` is not a stand-in for numbers, and that no tool records what is done with it.

    Args:
        value: an input.
        name: of what was called, for the door's title.
        door: its kind.

    Raises:
        TypeError: it holds no numbers: a tensor of shapes only, or one that a tool records operations with.
        RuntimeError: it has numbers, and a tool that records or transforms operations would miss the call.
    """
    if type(value) is np.ndarray:
        return
    for library, look in _LOOKS.items():
        module = sys.modules.get(library)
        found = None if module is None else look(value, module, door)
        if found is not None:
            raise found.error(f"{door.title.format(name)} {found.why}. {found.way}")


def check_gradient(value: Any, what: str = "the input", door: str = "the layer", variable: str = "x") -> None:
    """Makes sure that no gradient of a torch tensor gets lost.

    Args:
        value: an input.
        what, variable: its names.
        door: the name of what was called.

    Raises:
        RuntimeError: it requires a gradient, and torch would record what is done with it.
    """
    torch = sys.modules.get("torch")
    # while another thread imports torch, it has no tensors as yet
    if torch is None or isinstance(value, np.ndarray) or not isinstance(value, torch.Tensor):
        return
    if value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"tvm_conv3d computes no gradients, and {what} requires one. Call {door} under torch.no_grad() or "
            f"pass `{variable}.detach()`."
        )


def _in_torch(value: Any, torch: Any, door: Door) -> _Refusal | None:
    if not isinstance(value, torch.Tensor):
        if isinstance(value, _loaded("torch.fx.proxy", "Proxy")):
            way = "Call it through a function that torch.fx.wrap has registered."
            return _recorded("torch.fx.symbolic_trace", way, TypeError)
        return None
    # hot calls feel each question: none of a class is asked of what is of torch's own
    if type(value) is not torch.Tensor and isinstance(value, _loaded("torch._subclasses.fake_tensor", "FakeTensor")):
        return _recorded("torch.export and whatever else calls it with fake tensors", door.in_torch, TypeError)
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(value):
        return _recorded("torch.func.vmap", "Call it outside, with the mapped axis as a part of the batch.")
    if functorch.is_gradtrackingtensor(value) or _has_tangent(value):
        why = "computes no gradients, which torch.func.grad, jvp and their kin ask for"
        return _Refusal(RuntimeError, why, "Call it outside of them, with `x.detach()`.")
    if value.is_meta:
        return _Refusal(TypeError, "needs numbers, and a tensor on the device meta has a shape only", door.shapes)
    if torch.jit.is_tracing():
        return _recorded("torch.jit.trace and torch.onnx.export", door.in_torch)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return _recorded("a FakeTensorMode", "Call it outside of that mode.")
    if _loaded("torch.fx.experimental.proxy_tensor", "get_proxy_mode", _nothing)() is not None:
        return _recorded("make_fx", door.in_torch)
    return None


def _in_keras(value: Any, keras: Any, door: Door) -> _Refusal | None:
    if isinstance(value, getattr(keras, "KerasTensor", ())):
        return _Refusal(TypeError, "needs numbers, and a KerasTensor has a shape only", door.in_keras)
    return None


def _in_jax(value: Any, jax: Any, door: Door) -> _Refusal | None:
    if isinstance(value, getattr(jax, "ShapeDtypeStruct", ())):
        return _Refusal(TypeError, "needs numbers, and a jax.ShapeDtypeStruct has a shape only", door.shapes)
    if isinstance(value, _loaded("jax.core", "Tracer")):
        way = "Call it outside, or through jax.pure_callback."
        return _recorded("jax.jit, grad, vmap and their kin", way, TypeError)
    return None


def _in_tensorflow(value: Any, tensorflow: Any, door: Door) -> _Refusal | None:
    if type(value).__module__.startswith("tensorflow.") and getattr(tensorflow, "is_symbolic_tensor", _nothing)(value):
        return _recorded("tf.function", "Call it outside, or through tf.numpy_function.", TypeError)
    return None


#: Libraries, and what looks for stand-ins of theirs.
_LOOKS: dict[str, Callable[[Any, Any, Door], _Refusal | None]] = {
    "torch": _in_torch,
    "keras": _in_keras,
    "jax": _in_jax,
    "tensorflow": _in_tensorflow,
}


def _recorded(tool: str, way: str, error: type[Exception] = RuntimeError) -> _Refusal:
    return _Refusal(error, f"runs compiled code of its own, which is hidden from {tool}", way)


def _has_tangent(tensor: Any) -> bool:
    """Whether a derivative travels with the tensor, in forward mode."""
    forward = sys.modules.get("torch.autograd.forward_ad")
    if forward is None or getattr(forward, "_current_level", -1) < 0:
        return False
    return forward.unpack_dual(tensor).tangent is not None


def _loaded(module: str, name: str, default: Any = ()) -> Any:
    """An attribute of a module if that is loaded; the default is no class of anything."""
    return getattr(sys.modules.get(module), name, default)


def _nothing(*_: object) -> None:
    return None
