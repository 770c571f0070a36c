"""The one operator that all modules call, `torch.ops.tvm_conv3d.convolution`, and all that torch asks of it.

It is registered by a `Library` with an autograd kernel of its own: `torch.library.custom_op` and `register_autograd`
take twice the time around each call (torch 2.13), which small layers feel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.torch.operators import autograd, gradients
from tvm_conv3d.torch.operators.cpu_convolution import convolution_of, order_of_memory
from tvm_conv3d.torch.operators.definitions import CONVOLUTION, LIBRARY
from tvm_conv3d.torch.operators.geometry import Geometry, in_torch

_NAME = "convolution"


class _Differentiable(torch.autograd.Function):
    """The operator with gradients, which are operators that can be derived again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        return autograd.below(CONVOLUTION, x, weight, bias, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *arguments = inputs
        ctx.save_for_backward(x, weight)
        ctx.geometry = Geometry(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        found = gradients.backward(gradient, x, weight, ctx.geometry, ctx.needs_input_grad)
        return *found, *(None for _ in ctx.geometry)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    return in_torch(x, weight, bias, Geometry(*arguments)).contiguous(memory_format=order_of_memory(x))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """Shape, type and strides of a result; wrong shapes are refused in torch's words."""
    like = in_torch(x, weight, bias, Geometry(*arguments))
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=order_of_memory(x))


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """In the type that autocast asks for, as torch's own convolutions are."""
    dtype = torch.get_autocast_dtype("cpu")
    x, weight, bias = (cast(tensor, dtype) for tensor in (x, weight, bias))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return CONVOLUTION(x, weight, bias, *arguments)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A tensor in autocast's type: of numbers in float64 torch casts none."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Any, *arguments: Any) -> Any:
    """The mapped axis becomes a part of the batch, or groups where weights are mapped, too."""
    x_dim, weight_dim, bias_dim = in_dims[:3]
    count, geometry = info.batch_size, Geometry(*arguments)
    if weight_dim is None:
        x = x.movedim(x_dim, 0) if x_dim is not None else x.expand(count, *x.shape)
        result = CONVOLUTION(x.flatten(0, 1), weight, bias if bias_dim is None else None, *geometry)
        result = result.unflatten(0, (count, -1))
        if bias_dim is not None:
            result = result + bias.movedim(bias_dim, 0)[:, None, :, None, None, None]
        return result, 0
    x = x.movedim(x_dim, 1) if x_dim is not None else x[:, None].expand(-1, count, *x.shape[1:])
    weight = weight.movedim(weight_dim, 0)
    if bias is not None:
        bias = (bias.movedim(bias_dim, 0) if bias_dim is not None else bias.expand(count, -1)).flatten()
    geometry = geometry._replace(groups=geometry.groups * count)
    result = CONVOLUTION(x.flatten(1, 2), weight.flatten(0, 1), bias, *geometry)
    return result.unflatten(1, (count, -1)), 1


LIBRARY.impl(_NAME, convolution_of, "CPU")
LIBRARY.impl(_NAME, autograd.kernel(CONVOLUTION, autograd.in_both_modes(_Differentiable, _by_torch)), "Autograd")
LIBRARY.impl(_NAME, _autocast, "AutocastCPU")
torch.library.register_fake(f"tvm_conv3d::{_NAME}", _fake, lib=LIBRARY)
torch.library.register_vmap(f"tvm_conv3d::{_NAME}", _vmap, lib=LIBRARY)
