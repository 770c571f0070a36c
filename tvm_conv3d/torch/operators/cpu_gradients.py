"""The gradients on tensors in the CPU's memory: by the functional core, or by torch's own code where that is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import problem_of
from tvm_conv3d.functional.gradient_arguments import data_gradient_of as data_gradient_problem
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import DATA_GRADIENT, Conv3DSpec
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.operators.cpu_convolution import (
    EXECUTOR,
    MAX_CALLS,
    Kind,
    Prepared,
    order_of_memory,
    prepare,
    weights_of,
)
from tvm_conv3d.torch.operators.geometry import Geometry, gradients_in_torch

#: Channels of a patch's group below which vectors would be mostly empty.
_FEW_CHANNELS = 8

_calls: Recent[Any, Prepared | str] = process.keep("torch: checked calls of gradients", Recent(MAX_CALLS))


def data_gradient_of(gradient: Tensor, weight: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    """The gradient of a convolution's input in a fresh tensor, whose memory is of the order of `gradient`'s.

    Args:
        gradient: that of the convolution's result, (batch, channels, depth, height, width), in the CPU's memory.
        weight: of the convolution.
        input_size: depth, height and width of its input.
        arguments: of :class:`Geometry`.

    Raises:
        RuntimeError: shapes or types do not fit together, in torch's words.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    geometry, size = Geometry(*arguments), tuple(input_size)
    kinds = ((gradient.shape, gradient.dtype), (weight.shape, weight.dtype))
    key = (kinds, size, geometry.key)
    prepared = _calls.get(key)
    if prepared is None:
        prepared = _prepare_data_gradient(kinds, size, geometry)
        _calls.put(key, prepared)
    if not isinstance(prepared, str):
        source = interchange.at_hand(interchange.wrap(gradient))
        try:
            result = convolution.compute(EXECUTOR, prepared.problem, source, weights_of(weight, None, prepared))
        except ValueError as error:
            # no algorithm takes it within the limit of workspace, say
            prepared = str(error)
            _calls.put(key, prepared)
        else:
            counting.count_ours()
            return result
    counting.count_torch(f"data gradient: {prepared}")
    order, shape = order_of_memory(gradient), geometry.input_shape(gradient.shape, weight.shape, size)
    x = torch.empty(shape, dtype=gradient.dtype, memory_format=order)
    return gradients_in_torch(gradient, x, weight, geometry, (True, False))[0].contiguous(memory_format=order)


def weight_gradient_of(gradient: Tensor, x: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    """The gradient of a convolution's weight in a fresh, contiguous tensor, by torch's own code.

    Args:
        gradient: that of the convolution's result, (batch, channels, depth, height, width), in the CPU's memory.
        x: its input.
        kernel_size: depth, height and width of its weight.
        arguments: of :class:`Geometry`.

    Raises:
        RuntimeError: shapes or types do not fit together, in torch's words.
    """
    geometry = Geometry(*arguments)
    weight = x.new_empty(geometry.weight_shape(gradient.shape, x.shape, kernel_size))
    return gradients_in_torch(gradient, x, weight, geometry, (False, True))[1].contiguous()


def _prepare_data_gradient(kinds: tuple[Kind, ...], size: tuple[int, ...], geometry: Geometry) -> Prepared | str:
    """What calls need of gradient and weight of these kinds, or why torch's own code is asked."""
    (shape, dtype), weight = kinds
    forward = prepare(((torch.Size(geometry.input_shape(shape, weight[0], size)), dtype), weight), geometry)
    if isinstance(forward, str):
        return forward
    spec = data_gradient_problem(forward.problem.spec)
    if spec.input_shape != tuple(shape):
        # what is wrong is for torch to say
        return "a gradient of another shape than the result's"
    if _is_of_small_patches(spec):
        return "patches of few channels"
    return Prepared(problem_of(spec), (DATA_GRADIENT, forward.use))


def _is_of_small_patches(spec: Conv3DSpec) -> bool:
    """Whether each cell of the result is in one window at most: a phase is a product with few filters then."""
    apart = all(k <= s for k, s in zip(spec.kernel, spec.strides, strict=True)) and max(spec.strides) > 1
    return spec.direction == DATA_GRADIENT and apart and spec.group_channels < _FEW_CHANNELS
