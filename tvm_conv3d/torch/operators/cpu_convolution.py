"""The operator on tensors in the CPU's memory: by the functional core, or by torch's own code where that can't.

Weights carry no version here. torch's counter of a tensor's versions misses writes through `.data`, NumPy and other
processes, so that weights are told by their content, as those of :func:`tvm_conv3d.conv3d` are.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import ConvArguments, Problem
from tvm_conv3d.functional.transposed_arguments import TransposeArguments
from tvm_conv3d.runtime import interchange, kept_weights
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.folding import BatchNorm
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting
from tvm_conv3d.torch.arguments import DTYPES
from tvm_conv3d.torch.operators.geometry import Geometry, in_torch

#: Calls that are kept at hand, told apart by shapes, types and arguments.
MAX_CALLS = 4096

#: Shape and type of a tensor.
Kind = tuple[torch.Size, torch.dtype]

#: Axes of torch's weights, (filters, channels / groups, depth, height, width), in the order of the functional core; of
#: a transposed convolution (channels, filters / groups, ...) likewise.
WEIGHT_AXES = (2, 3, 4, 1, 0)


class Prepared(NamedTuple):
    """What calls have in common whose shapes, types and arguments are the same; `use` as in `kept_weights`."""

    problem: Problem
    use: Hashable


_calls: Recent[Any, Prepared | str] = process.keep("torch: checked calls", Recent(MAX_CALLS))

EXECUTOR = process.keep("torch: executor", Executor(most_specs=MAX_CALLS))


def convolution_of(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """The convolution of `x`, (batch, channels, depth, height, width), in a fresh tensor.

    The result's memory is of the order of the input's: `channels_last_3d` or contiguous.

    Args:
        x: the input, in the CPU's memory.
        weight, bias: as `torch.nn.functional` takes them.
        arguments: of :class:`Geometry`.

    Raises:
        RuntimeError: shapes or types do not fit together, in torch's words.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    geometry = Geometry(*arguments)
    kinds = tuple((tensor.shape, tensor.dtype) for tensor in ((x, weight) if bias is None else (x, weight, bias)))
    key = (kinds, geometry.key)
    prepared = _calls.get(key)
    if prepared is None:
        prepared = prepare(kinds, geometry)
        _calls.put(key, prepared)
    if isinstance(prepared, str):
        return _by_torch(prepared, x, weight, bias, geometry)
    source = interchange.at_hand(interchange.wrap(x))
    weights = weights_of(weight, bias, prepared)
    try:
        result = convolution.compute(EXECUTOR, prepared.problem, source, weights)
    except ValueError as error:
        # no algorithm takes it within the limit of workspace, say
        _calls.put(key, str(error))
        return _by_torch(str(error), x, weight, bias, geometry)
    counting.count_ours()
    return result


def weights_of(
    weight: Tensor, bias: Tensor | None, prepared: Prepared, norm: BatchNorm | None = None, norm_at: int | None = None
) -> Weights:
    """The weights with what is kept of their content; a trained parameter's content before it is forgotten.

    Args:
        weight, bias: as torch's functions take them.
        prepared: of the call.
        norm: what is folded into them.
        norm_at: where its statistics lie, as weights that several layers share have one content with each norm.

    Raises:
        ValueError: the norm can't be folded into them.
        MemoryError: there is none for the copies.
    """
    array = interchange.wrap(weight).numpy().transpose(WEIGHT_AXES)
    values = None if bias is None else interchange.wrap(bias).numpy()
    weights = kept_weights.STORE.get(array, values, prepared.problem.spec.dtype, prepared.use, norm)
    if _is_trained(weight):
        # else each step of an optimizer would leave its weights behind
        place = (weight.data_ptr(), norm_at, array.shape, weight.dtype, prepared.use)
        kept_weights.STORE.trained(place, weights)
    return weights


def _is_trained(weight: Tensor) -> bool:
    """Whether it is a parameter, or a view of one, such as that of a kernel in another order of axes."""
    parameter = weight._base if weight._is_view() else weight
    return parameter.requires_grad and parameter.is_leaf


def order_of_memory(x: Tensor) -> torch.memory_format:
    """That of a result, by the strides of its input."""
    last = interchange.channels_lie_inside(x.shape, x.stride())
    return torch.channels_last_3d if last else torch.contiguous_format


def _by_torch(reason: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    counting.count_torch(reason)
    return in_torch(x, weight, bias, geometry).contiguous(memory_format=order_of_memory(x))


def prepare(kinds: tuple[Kind, ...], geometry: Geometry, post_ops: tuple[str, ...] = ()) -> Prepared | str:
    """What calls need of input, weight and maybe bias of these kinds, or why torch's own code is asked."""
    if len({dtype for _, dtype in kinds}) != 1 or kinds[0][1] not in DTYPES:
        return f"input, weight and bias of types {', '.join(str(dtype) for _, dtype in kinds)}"
    shapes = [tuple(shape) for shape, _ in kinds]
    if any(len(shape) != 5 for shape in shapes[:2]):
        return "input or weight without five axes"
    if not geometry.is_torchs:
        # the functional core has a meaning for it
        return "a geometry that torch refuses"
    common = (geometry.stride, geometry.pads, geometry.dilation, geometry.groups, CHANNELS_FIRST, post_ops)
    kernel_shape = tuple(shapes[1][axis] for axis in WEIGHT_AXES)
    try:
        use = (
            TransposeArguments.of(*common, geometry.output_padding)
            if geometry.transposed
            else ConvArguments.of(*common)
        )
        problem = use.problem(shapes[0], kernel_shape, DTYPES[kinds[0][1]], shapes[2] if len(shapes) > 2 else None)
    except ValueError as error:
        return str(error)
    # which of them are errors is for torch to say
    if problem.spec.empty or 0 in shapes[0]:
        return "tensors without elements"
    # packed weights are the same, whatever becomes of the sums
    return Prepared(problem, replace(use, post_ops=()))
