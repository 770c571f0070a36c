"""What training needs beside convolutions, as operators of torch's: maxima of windows side by side, and gradients.

`max_pooling` gives the maxima, and the number of each one's cell in its window; it is differentiable. Its gradient and
that of a ReLU are operators of their own, whose gradients, which are asked for by gradients of gradients only, are
those of torch's functions. Results are in `torch.channels_last_3d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_conv3d.functional import training
from tvm_conv3d.runtime import interchange
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators import autograd
from tvm_conv3d.torch.operators.memory import channels_inside
from tvm_conv3d.torch.operators.registration import triple

_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")
for _schema in (
    "max_pooling(Tensor input, int[] kernel_size) -> (Tensor, Tensor)",
    "max_pooling_gradient(Tensor gradient, Tensor cells, SymInt[] input_size, int[] kernel_size) -> Tensor",
    "relu_gradient(Tensor gradient, Tensor result) -> Tensor",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

#: The maximum of each window of `kernel_size`, windows side by side, and its cell's number in the window.
MAX_POOLING = torch.ops.tvm_conv3d.max_pooling.default

#: The gradient of its input, from that of the maxima and their cells.
MAX_POOLING_GRADIENT = torch.ops.tvm_conv3d.max_pooling_gradient.default

#: The gradient of a ReLU's input, from that of its result and the result.
RELU_GRADIENT = torch.ops.tvm_conv3d.relu_gradient.default


def takes(x: Tensor, kernel_size: Sequence[int]) -> bool:
    """Whether :data:`MAX_POOLING` computes maxima of such a tensor in the CPU's memory."""
    return (
        x.dim() == 5
        and 0 not in x.shape
        and x.dtype in DTYPES
        and training.takes(DTYPES[x.dtype], triple("kernel_size", kernel_size))
        and all(cells >= taps for cells, taps in zip(x.shape[2:], kernel_size, strict=True))
    )


class _MaxPooling(torch.autograd.Function):
    """The maxima with a gradient."""

    @staticmethod
    def forward(x: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        return autograd.below(MAX_POOLING, x, kernel_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.kernel_size = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:
        (cells,) = ctx.saved_tensors
        return MAX_POOLING_GRADIENT(gradient, cells, ctx.size, ctx.kernel_size), None


def _max_pooling(x: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    data, restore = channels_inside(x)
    maxima, cells = training.max_pool(data, triple("kernel_size", kernel_size))
    return restore(maxima), torch.from_numpy(cells).permute(0, 4, 1, 2, 3)


def _max_pooling_by_torch(x: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    cells = autograd.below(MAX_POOLING, x, kernel_size)[1]
    maxima = x.flatten(2).gather(2, _places(cells, x.shape[2:], kernel_size).flatten(2)).view(cells.shape)
    return maxima.contiguous(memory_format=torch.channels_last_3d), cells


def _fake_max_pooling(x: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    size = [cells // taps for cells, taps in zip(x.shape[2:], kernel_size, strict=True)]
    maxima = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    return maxima, torch.empty_like(maxima, dtype=torch.uint8)


def _max_pooling_gradient(
    gradient: Tensor, cells: Tensor, input_size: Sequence[int], kernel_size: Sequence[int]
) -> Tensor:
    data, restore = channels_inside(gradient)
    numbers = np.ascontiguousarray(interchange.with_channels_last(interchange.wrap(cells)).numpy())
    size, window = triple("input_size", input_size), triple("kernel_size", kernel_size)
    return restore(training.max_pool_gradient(data, numbers, size, window))


def _max_pooling_gradient_by_torch(
    gradient: Tensor, cells: Tensor, input_size: Sequence[int], kernel_size: Sequence[int]
) -> Tensor:
    depth, height, width = input_size
    flat = gradient.new_zeros((*gradient.shape[:2], depth * height * width))
    place = _places(cells, input_size, kernel_size)
    return flat.scatter(2, place.flatten(2), gradient.flatten(2)).unflatten(2, (depth, height, width))


def _places(cells: Tensor, input_size: Sequence[int], kernel_size: Sequence[int]) -> Tensor:
    """The number of each maximum's cell in its channel of the input."""
    _, kh, kw = kernel_size
    place, number = torch.zeros_like(cells, dtype=torch.int64), cells.to(torch.int64)
    within = (number // (kh * kw), number // kw % kh, number % kw)
    for axis, (taps, cell, along) in enumerate(zip(kernel_size, within, input_size, strict=True), 2):
        shape = [-1 if axis == each else 1 for each in range(5)]
        windows = torch.arange(cells.shape[axis]).reshape(shape)
        place = place * along + windows * taps + cell
    return place


def _fake_max_pooling_gradient(
    gradient: Tensor, cells: Tensor, input_size: Sequence[int], kernel_size: Sequence[int]
) -> Tensor:
    shape = (*gradient.shape[:2], *input_size)
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last_3d)


def _relu_gradient(gradient: Tensor, result: Tensor) -> Tensor:
    if result.dtype not in DTYPES or DTYPES[result.dtype] not in training.DTYPES or result.dim() != 5:
        return _relu_gradient_by_torch(gradient, result)
    (given, restore), (values, _) = channels_inside(gradient), channels_inside(result)
    return restore(training.relu_gradient(values, given))


def _relu_gradient_by_torch(gradient: Tensor, result: Tensor) -> Tensor:
    return torch.where(result <= 0, 0, gradient)


def _fake_relu_gradient(gradient: Tensor, result: Tensor) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.channels_last_3d)


for _operator, _kernel, _derivable, _fake in (
    (MAX_POOLING, _max_pooling, autograd.in_both_modes(_MaxPooling, _max_pooling_by_torch), _fake_max_pooling),
    (MAX_POOLING_GRADIENT, _max_pooling_gradient, _max_pooling_gradient_by_torch, _fake_max_pooling_gradient),
    (RELU_GRADIENT, _relu_gradient, _relu_gradient_by_torch, _fake_relu_gradient),
):
    _name = _operator.name()
    _LIBRARY.impl(_name.removeprefix("tvm_conv3d::"), _kernel, "CPU")
    _LIBRARY.impl(_name.removeprefix("tvm_conv3d::"), autograd.kernel(_operator, _derivable), "Autograd")
    torch.library.register_fake(_name, _fake, lib=_LIBRARY)
