"""The gradients on tensors in the CPU's memory: by the functional core, or by torch's own code where that is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_conv3d.functional import convolution, gradients
from tvm_conv3d.functional.arguments import Problem, problem_of
from tvm_conv3d.functional.gradient_arguments import data_gradient_of as data_gradient_problem
from tvm_conv3d.functional.gradient_arguments import weight_gradient_of as weight_gradient_problem
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import DATA_GRADIENT, Conv3DSpec
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators.cpu_convolution import (
    EXECUTOR,
    MAX_CALLS,
    WEIGHT_AXES,
    Kind,
    Prepared,
    order_of_memory,
    prepare,
    weights_of,
)
from tvm_conv3d.torch.operators.geometry import Geometry, gradients_in_torch

#: Axes of the functional core's weights in the order of torch's.
TO_TORCH = tuple(map(WEIGHT_AXES.index, range(5)))

#: Channels of a patch's group below which vectors would be mostly empty.
_FEW_CHANNELS = 8

_weight_calls: Recent[Any, Problem | str] = process.keep("torch: checked calls of weight gradients", Recent(MAX_CALLS))
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
    return data_gradient_by_torch(gradient, weight, size, *arguments)


def weight_gradient_of(gradient: Tensor, x: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    """The gradient of a convolution's weight in a fresh, contiguous tensor.

    Args:
        gradient: that of the convolution's result, (batch, channels, depth, height, width), in the CPU's memory.
        x: its input.
        kernel_size: depth, height and width of its weight.
        arguments: of :class:`Geometry`.

    Raises:
        RuntimeError: shapes or types do not fit together, in torch's words.
        MemoryError: there is none for the result or the intermediates.
    """
    geometry, kernel = Geometry(*arguments), tuple(kernel_size)
    kinds = ((gradient.shape, gradient.dtype), (x.shape, x.dtype))
    key = (kinds, kernel, geometry.key)
    prepared = _weight_calls.get(key)
    if prepared is None:
        prepared = _prepare_weight_gradient(kinds, kernel, geometry)
        _weight_calls.put(key, prepared)
    if not isinstance(prepared, str):
        # a transposed convolution reads the smaller volume
        both = (gradient, x) if geometry.transposed else (x, gradient)
        try:
            found, _ = gradients.weight_gradient(EXECUTOR, prepared, *(map(interchange.wrap, both)))
        except ValueError as error:
            prepared = str(error)
            _weight_calls.put(key, prepared)
        else:
            counting.count_ours()
            return _in_torchs_order(found, x)
    counting.count_torch(f"weight gradient: {prepared}")
    return weight_gradient_by_torch(gradient, x, kernel, *arguments)


def data_gradient_by_torch(gradient: Tensor, weight: Tensor, input_size: Sequence[int], *arguments: Any) -> Tensor:
    """:func:`data_gradient_of` by torch's own code, differentiable."""
    geometry, order = Geometry(*arguments), order_of_memory(gradient)
    shape = geometry.input_shape(gradient.shape, weight.shape, input_size)
    x = torch.empty(shape, dtype=gradient.dtype, memory_format=order)
    return gradients_in_torch(gradient, x, weight, geometry, (True, False))[0].contiguous(memory_format=order)


def weight_gradient_by_torch(gradient: Tensor, x: Tensor, kernel_size: Sequence[int], *arguments: Any) -> Tensor:
    """:func:`weight_gradient_of` by torch's own code, differentiable."""
    geometry = Geometry(*arguments)
    weight = x.new_empty(geometry.weight_shape(gradient.shape, x.shape, kernel_size))
    return gradients_in_torch(gradient, x, weight, geometry, (False, True))[1].contiguous()


def _in_torchs_order(found: np.ndarray, x: Tensor) -> Tensor:
    """A gradient of weights in the order of torch's, of a tensor's type."""
    ordered = interchange.prepare(found.transpose(TO_TORCH), DTYPES[x.dtype])
    return interchange.wrap(x).restore(ordered)


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


def _prepare_weight_gradient(kinds: tuple[Kind, ...], kernel: tuple[int, ...], geometry: Geometry) -> Problem | str:
    """What calls need of gradient and input of these kinds, or why torch's own code is asked."""
    (shape, dtype), x = kinds
    weight = torch.Size(geometry.weight_shape(shape, x[0], kernel))
    forward = prepare((x, (weight, dtype)), geometry)
    if isinstance(forward, str):
        return forward
    if forward.problem.spec.output_shape != tuple(shape):
        # what is wrong is for torch to say
        return "a gradient of another shape than the result's"
    return problem_of(weight_gradient_problem(forward.problem.spec))


def _is_of_small_patches(spec: Conv3DSpec) -> bool:
    """Whether each cell of the result is in one window at most: a phase is a product with few filters then."""
    apart = all(k <= s for k, s in zip(spec.kernel, spec.strides, strict=True)) and max(spec.strides) > 1
    return spec.direction == DATA_GRADIENT and apart and spec.group_channels < _FEW_CHANNELS
