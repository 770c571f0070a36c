"""The operator of a convolution with all that follows it, `torch.ops.tvm_conv3d.fused_convolution`.

Networks that are rewritten call it. Its result is in `torch.channels_last_3d` memory, whatever the input's order is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.torch.operators import autograd, gradients
from tvm_conv3d.torch.operators.composition import Epilogue, composed, in_channels_last
from tvm_conv3d.torch.operators.convolution import CONVOLUTION, cast
from tvm_conv3d.torch.operators.cpu_fused_convolution import fused_convolution_of
from tvm_conv3d.torch.operators.geometry import Geometry, in_torch, split_geometry
from tvm_conv3d.torch.operators.training import RELU_GRADIENT

_NAME = "fused_convolution"
_LIBRARY = torch.library.Library("tvm_conv3d", "FRAGMENT")
_LIBRARY.define(
    f"{_NAME}(Tensor input, Tensor weight, Tensor? bias, Tensor?[] batch_norm, float epsilon, Tensor? residual, "
    "Tensor? slope, str[] post_ops, int[] stride, int[] padding, int[] dilation, bool transposed, "
    "int[] output_padding, int groups, int? packed_limit=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

#: The operator: `post_ops(batch_norm(convolution(input) + bias))`. Behind `bias` its arguments are those of
#: :class:`tvm_conv3d.torch.operators.composition.Epilogue`, then those of `aten::convolution`, but that six numbers of
#: `padding` are those before and after each axis; and bytes that packed weights may take, where they are packed.
FUSED_CONVOLUTION = torch.ops.tvm_conv3d.fused_convolution.default

#: How many of the operator's arguments, from the fourth on, are the epilogue's.
_EPILOGUE = len(Epilogue._fields)

#: An epilogue of a ReLU only.
_RELU = Epilogue([], 0.0, None, None, ["relu"])


def split_arguments(arguments: Sequence[Any]) -> tuple[Epilogue, Geometry]:
    """All arguments behind the bias that decide the result's values."""
    return Epilogue(*arguments[:_EPILOGUE]), split_geometry(arguments[_EPILOGUE:])[0]


class _WithReLU(torch.autograd.Function):
    """A convolution and a ReLU by one kernel, with gradients that need its result only."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        return autograd.below(FUSED_CONVOLUTION, x, weight, bias, *_RELU, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *arguments = inputs
        ctx.save_for_backward(x, weight, output)
        ctx.geometry = Geometry(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight, result = ctx.saved_tensors
        of_sums = RELU_GRADIENT(gradient, result)
        found = gradients.backward(of_sums, x, weight, ctx.geometry, ctx.needs_input_grad)
        return *found, *(None for _ in ctx.geometry)


def _derivable(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    # the plain operator has no rule for what torch.func derives by
    plain = not autograd.in_forward_mode() and not torch._C._are_functorch_transforms_active()
    epilogue, geometry = split_arguments(arguments)
    alone = not epilogue.batch_norm and epilogue.residual is epilogue.slope is None
    if plain and alone and list(epilogue.post_ops) == _RELU.post_ops:
        return _WithReLU.apply(x, weight, bias, *geometry)
    return in_channels_last(composed(x, weight, bias, epilogue, geometry, _convolution_last if plain else in_torch))


def _convolution_last(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The plain operator, which has torch's gradients, in `torch.channels_last_3d` memory."""
    return CONVOLUTION(x.contiguous(memory_format=torch.channels_last_3d), weight, bias, *geometry)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """Shape, type and strides of a result; what is wrong is refused in the composition's words."""
    like = composed(x, weight, bias, *split_arguments(arguments))
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    """All in the type that autocast asks for, but the batch norm and the slope, which are no tensors of that size."""
    dtype = torch.get_autocast_dtype("cpu")
    epilogue, geometry = split_arguments(arguments)
    epilogue = epilogue._replace(residual=cast(epilogue.residual, dtype))
    x, weight, bias = (cast(tensor, dtype) for tensor in (x, weight, bias))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return FUSED_CONVOLUTION(x, weight, bias, *epilogue, *geometry)


def _vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
    """The mapped axis becomes a part of the batch; where parameters are mapped, each sample is a call of its own."""
    count, (x, weight, bias, *arguments) = info.batch_size, given
    epilogue, dims = split_arguments(tuple(arguments))[0], Epilogue(*in_dims[3 : 3 + _EPILOGUE])
    if any(dim is not None for dim in (*in_dims[1:3], *(dims.batch_norm or ()), dims.slope)):
        return torch.stack([FUSED_CONVOLUTION(*_sample(given, in_dims, number)) for number in range(count)]), 0
    residual = _into_batch(epilogue.residual, dims.residual, count)
    arguments[:_EPILOGUE] = epilogue._replace(residual=residual)
    result = FUSED_CONVOLUTION(_into_batch(x, in_dims[0], count), weight, bias, *arguments)
    return result.unflatten(0, (count, -1)), 0


def _sample(value: Any, dim: Any, number: int) -> Any:
    """One of those that are mapped along `dim`; sequences have their elements' axes there."""
    if isinstance(dim, (list, tuple)):
        return [_sample(*each, number) for each in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, number)


def _into_batch(tensor: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    if tensor is None:
        return None
    tensor = tensor.movedim(dim, 0) if dim is not None else tensor.expand(count, *tensor.shape)
    return tensor.flatten(0, 1)


_LIBRARY.impl(_NAME, fused_convolution_of, "CPU")
_LIBRARY.impl(_NAME, autograd.kernel(FUSED_CONVOLUTION, _derivable), "Autograd")
_LIBRARY.impl(_NAME, _autocast, "AutocastCPU")
torch.library.register_fake(f"tvm_conv3d::{_NAME}", _fake, lib=_LIBRARY)
torch.library.register_vmap(f"tvm_conv3d::{_NAME}", _vmap, lib=_LIBRARY)
