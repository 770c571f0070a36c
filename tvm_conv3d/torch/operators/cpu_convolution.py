"""The operator on tensors in the CPU's memory: by the functional core, or by torch's own code where that can't.

Weights carry no version here. torch's counter of a tensor's versions misses writes through `.data`, NumPy and other
processes, so that weights are told by their content, as those of :func:`tvm_conv3d.conv3d` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import ConvArguments, Problem
from tvm_conv3d.functional.transposed_arguments import TransposeArguments
from tvm_conv3d.runtime import interchange, kept_weights
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.torch import counting

#: What is computed here, and its names.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}

#: Calls that are kept at hand, told apart by shapes, types and arguments.
_MAX_CALLS = 4096

#: Axes of torch's weights, (filters, channels / groups, depth, height, width), in the order of the functional core; of
#: a transposed convolution (channels, filters / groups, ...) likewise.
_WEIGHT_AXES = (2, 3, 4, 1, 0)


class Geometry(NamedTuple):
    """The operator's arguments behind its tensors, as `aten::convolution` names them.

    Attributes:
        stride, dilation, groups: torch's.
        padding: three numbers, or six: before and after depth, height and width; six for what is not transposed only.
        transposed, output_padding: torch's.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    @property
    def key(self) -> tuple[Any, ...]:
        """The same as what tables can be asked for."""
        return tuple(tuple(value) if isinstance(value, (list, tuple)) else value for value in self)

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Before and after each axis."""
        padding = self.padding if len(self.padding) == 6 else [pad for pad in self.padding for _ in range(2)]
        return tuple(zip(padding[::2], padding[1::2], strict=True))

    def split(self) -> tuple[tuple[int, ...], Geometry]:
        """What is to be padded beforehand, as torch's `pad` takes it, and what torch's own convolution takes then."""
        around = tuple(min(pair) for pair in self.pads)
        more = [pad - least for pair, least in zip(self.pads, around, strict=True) for pad in pair]
        # torch begins with the last axis
        beforehand = tuple(pad for axis in (2, 1, 0) for pad in more[2 * axis : 2 * axis + 2])
        return beforehand if any(beforehand) else (), self._replace(padding=around)


class _Prepared(NamedTuple):
    """What calls have in common whose shapes, types and arguments are the same; `use` as in `kept_weights`."""

    problem: Problem
    use: ConvArguments


_calls: Recent[Any, _Prepared | str] = process.keep("torch: checked calls", Recent(_MAX_CALLS))

#: Where parameters lie, and their last content.
_trained: Recent[Any, Weights] = process.keep("torch: last weights of parameters", Recent(_MAX_CALLS))

_EXECUTOR = process.keep("torch: executor", Executor(most_specs=_MAX_CALLS))


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
        prepared = _prepare(kinds, geometry)
        _calls.put(key, prepared)
    if isinstance(prepared, str):
        return _by_torch(prepared, x, weight, bias, geometry)
    source = interchange.at_hand(interchange.wrap(x))
    weights = _weights(weight, bias, prepared)
    try:
        result = convolution.compute(_EXECUTOR, prepared.problem, source, weights)
    except ValueError as error:
        # no algorithm takes it within the limit of workspace, say
        _calls.put(key, str(error))
        return _by_torch(str(error), x, weight, bias, geometry)
    counting.count_ours()
    return result


def _weights(weight: Tensor, bias: Tensor | None, prepared: _Prepared) -> Weights:
    """The weights with what is kept of their content; a trained parameter's content before it is forgotten."""
    array = interchange.wrap(weight).numpy().transpose(_WEIGHT_AXES)
    values = None if bias is None else interchange.wrap(bias).numpy()
    weights = kept_weights.STORE.get(array, values, prepared.problem.spec.dtype, prepared.use)
    if weight.requires_grad and weight.is_leaf:
        # else each step of an optimizer would leave its weights behind
        place = (weight.data_ptr(), array.shape, weight.dtype, prepared.use)
        before = _trained.get(place)
        if before is not weights:
            if before is not None:
                kept_weights.STORE.forget(before)
            _trained.put(place, weights)
    return weights


def in_torch(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The same by torch's own code, differentiable, in the order of memory that torch chooses."""
    beforehand, rest = geometry.split()
    if beforehand:
        x = torch.nn.functional.pad(x, beforehand)
    return torch.ops.aten.convolution.default(x, weight, bias, *rest)


def order_of_memory(x: Tensor) -> torch.memory_format:
    """That of a result, by the strides of its input."""
    last = interchange.channels_lie_inside(x.shape, x.stride())
    return torch.channels_last_3d if last else torch.contiguous_format


def _by_torch(reason: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    counting.count_torch(reason)
    return in_torch(x, weight, bias, geometry).contiguous(memory_format=order_of_memory(x))


def _prepare(kinds: tuple[tuple[torch.Size, torch.dtype], ...], geometry: Geometry) -> _Prepared | str:
    """What calls of a kind need, or why torch's own code is asked."""
    if len({dtype for _, dtype in kinds}) != 1 or kinds[0][1] not in DTYPES:
        return f"input, weight and bias of types {', '.join(str(dtype) for _, dtype in kinds)}"
    shapes = [tuple(shape) for shape, _ in kinds]
    if any(len(shape) != 5 for shape in shapes[:2]):
        return "input or weight without five axes"
    common = (geometry.stride, geometry.pads, geometry.dilation, geometry.groups, CHANNELS_FIRST, ())
    kernel_shape = tuple(shapes[1][axis] for axis in _WEIGHT_AXES)
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
    return "tensors without elements" if problem.spec.empty or 0 in shapes[0] else _Prepared(problem, use)
