"""Which convolutions torch's own code computes, and why: all that is known before the operator is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.graph.recording import Recorder

#: The operator's kernel, and its fake one.
_DEVICES = ("cpu", "meta")

#: What a recorder sees is torch's own function, and no loss of speed that is to be told.
RECORDING = "a recording of the module's functions"

#: Types in which torch's own convolutions take hundreds of times as long on CPUs.
_SLOW = (torch.float16,)

_F = TypeVar("_F", bound=Callable[..., Any])

_NO_GRADIENT = "a transform of torch.func that derives, or forward-mode differentiation, around the module"


def _constant(function: _F) -> _F:
    """`torch.compiler.assume_constant_result`, which loads torch's compiler: 80 MB that inference does without."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def why_torch(x: Any, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why torch's own code is to compute a convolution; None where the operator takes it.

    What is wrong with the arguments is for torch's own code to say.
    """
    compiling = torch.compiler.is_compiling()
    tool = None if compiling else around()
    if tool is not None and not (tool is RECORDING and weight.dtype in _SLOW):
        return tool
    if (compiling or torch.jit.is_tracing()) and _onnx_export():
        return "an export to ONNX"
    tensors = (x, weight) if bias is None else (x, weight, bias)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            return f"an input that is no tensor: {type(tensor).__name__}"
        if tensor.device.type not in _DEVICES or tensor.device != weight.device:
            return f"tensors on {', '.join(sorted({each.device.type for each in (x, weight)}))}"
        if tensor.layout != torch.strided:
            return f"tensors of layout {tensor.layout}"
        if tensor.dtype not in DTYPES:
            return f"numbers of type {tensor.dtype}"
        if _wraps_others(tensor, compiling):
            return f"tensors of {type(tensor).__name__}, which wraps others"
    if x.dim() not in (4, 5):
        return f"an input of {x.dim()} axes"
    if any(tensor.dtype != weight.dtype for tensor in tensors) and not torch.is_autocast_enabled("cpu"):
        return "input, weight and bias of several types"
    return None


def count_torch(reason: str) -> None:
    """Counts what torch's own code computes."""
    if torch.compiler.is_compiling():
        _count_while_tracing(reason)
    elif reason is not RECORDING:
        counting.count_torch(reason)


@_constant
def _count_while_tracing(reason: str) -> bool:
    counting.count_torch(reason)
    return True


def around() -> str | None:
    """What of torch's tools around an eager call would not see the operator as they see torch's own."""
    if torch._C._are_functorch_transforms_active():
        vmap = torch._C._functorch.TransformType.Vmap
        if any(each.key() != vmap for each in torch._C._functorch.get_interpreter_stack()):
            return _NO_GRADIENT
    if forward_ad._current_level >= 0:
        return _NO_GRADIENT
    if torch._C._len_torch_function_stack():
        for mode in _get_current_function_mode_stack():
            if isinstance(mode, Recorder):
                return RECORDING
            # that of torch.set_default_device: convolutions are nothing to it
            if not isinstance(mode, DeviceContext):
                return f"a torch function mode, {type(mode).__name__}"
    return None


@_constant
def _onnx_export() -> bool:
    """Whether torch.onnx.export is at work, which knows torch's operators only."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def _wraps_others(tensor: Tensor, compiling: bool) -> bool:
    """Whether a tensor's class computes by itself; fake tensors are for all operators."""
    if compiling:
        return is_traceable_wrapper_subclass(tensor)
    kind = type(tensor)
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and not _is_fake(tensor)


def _is_fake(tensor: Tensor) -> bool:
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)
