"""The operators of a convolution's gradients, and all that torch asks of them.

Each is linear in both of its tensors, and derives by the other two operators of
:mod:`tvm_conv3d.torch.operators.definitions`, so that gradients of any order are these three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.torch.operators import autograd
from tvm_conv3d.torch.operators.cpu_convolution import order_of_memory
from tvm_conv3d.torch.operators.cpu_gradients import (
    data_gradient_by_torch,
    data_gradient_of,
    weight_gradient_by_torch,
    weight_gradient_of,
)
from tvm_conv3d.torch.operators.definitions import CONVOLUTION, DATA_GRADIENT, LIBRARY, WEIGHT_GRADIENT
from tvm_conv3d.torch.operators.geometry import Geometry


class _DataGradient(torch.autograd.Function):
    """The gradient of the input, with gradients of its own."""

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        return autograd.below(DATA_GRADIENT, gradient, weight, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gradient, weight, _, *geometry = inputs
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        gradient, weight = ctx.saved_tensors
        wanted, geometry = ctx.needs_input_grad, ctx.geometry
        of_gradient = CONVOLUTION(outer, weight, None, *geometry) if wanted[0] else None
        of_weight = WEIGHT_GRADIENT(gradient, outer, weight.shape[2:], *geometry) if wanted[1] else None
        return of_gradient, of_weight, None, *(None for _ in geometry)


class _WeightGradient(torch.autograd.Function):
    """The gradient of the weight, with gradients of its own."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, *arguments: Any) -> Tensor:
        return autograd.below(WEIGHT_GRADIENT, gradient, x, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gradient, x, _, *geometry = inputs
        ctx.save_for_backward(gradient, x)
        ctx.geometry = geometry

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        gradient, x = ctx.saved_tensors
        wanted, geometry = ctx.needs_input_grad, ctx.geometry
        of_gradient = CONVOLUTION(x, outer, None, *geometry) if wanted[0] else None
        of_x = DATA_GRADIENT(gradient, outer, x.shape[2:], *geometry) if wanted[1] else None
        return of_gradient, of_x, None, *(None for _ in geometry)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of a convolution's input, weight and bias; None where they are not wanted.

    Args:
        gradient: that of the convolution's result.
        x, weight: of the convolution.
        geometry: of the convolution.
        wanted: which of the three are.
    """
    of_x = DATA_GRADIENT(gradient, weight, x.shape[2:], *geometry) if wanted[0] else None
    of_weight = WEIGHT_GRADIENT(gradient, x, weight.shape[2:], *geometry) if wanted[1] else None
    return of_x, of_weight, gradient.sum((0, 2, 3, 4)) if wanted[2] else None


def _fake_data_gradient(gradient: Tensor, weight: Tensor, size: Sequence[int], *arguments: Any) -> Tensor:
    shape = Geometry(*arguments).input_shape(gradient.shape, weight.shape, size)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=order_of_memory(gradient))


def _fake_weight_gradient(gradient: Tensor, x: Tensor, kernel: Sequence[int], *arguments: Any) -> Tensor:
    return gradient.new_empty(Geometry(*arguments).weight_shape(gradient.shape, x.shape, kernel))


def _vmap_of(operator: Any) -> Any:
    def vmap(info: Any, in_dims: tuple[Any, ...], first: Tensor, second: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        """Each sample of the mapped axis is a call of its own: torch maps gradients for Jacobians, if at all."""
        given = ((first, in_dims[0]), (second, in_dims[1]))
        pairs = [
            [tensor if dim is None else tensor.select(dim, number) for tensor, dim in given]
            for number in range(info.batch_size)
        ]
        return torch.stack([operator(*pair, *arguments) for pair in pairs]), 0

    return vmap


for _operator, _differentiable, _on_cpu, _by_torch, _fake in (
    (DATA_GRADIENT, _DataGradient, data_gradient_of, data_gradient_by_torch, _fake_data_gradient),
    (WEIGHT_GRADIENT, _WeightGradient, weight_gradient_of, weight_gradient_by_torch, _fake_weight_gradient),
):
    _name = _operator.name().removesuffix(".default")
    LIBRARY.impl(_name.removeprefix("tvm_conv3d::"), _on_cpu, "CPU")
    _derivable = autograd.in_both_modes(_differentiable, _by_torch)
    LIBRARY.impl(_name.removeprefix("tvm_conv3d::"), autograd.kernel(_operator, _derivable), "Autograd")
    torch.library.register_fake(_name, _fake, lib=LIBRARY)
    torch.library.register_vmap(_name, _vmap_of(_operator), lib=LIBRARY)
