"""Keras's torch backend: the operators that this package has registered with torch, which all of its tools know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.spec import CHANNELS_LAST, Triple, same_padding
from tvm_conv3d.torch import choice, counting
from tvm_conv3d.torch.arguments import explicit_padding
from tvm_conv3d.torch.operators import post_ops, training
from tvm_conv3d.torch.operators.convolution import CONVOLUTION
from tvm_conv3d.torch.operators.fused_convolution import FUSED_CONVOLUTION

#: Axes of Keras's channels_last in torch's order, and back; those of Keras's kernels in torch's.
_TO_FIRST, _TO_LAST, _WEIGHT_AXES = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1), (4, 3, 0, 1, 2)

#: Of the fused operator: no residual operand, and no slope.
_NOTHING = (None, None)


class Torch(Backend):
    """Tensors of torch, on Keras's present device, which is "meta" where it asks for shapes."""

    supports_jit = True
    has_pools = True
    has_norms = True
    tally = counting.TALLY

    def why_keras(self, x: Any, kernel: Tensor, bias: Tensor | None) -> str | None:
        """As the modules of `tvm_conv3d.torch`, which are Keras's beside this."""
        reason = choice.why_torch(x, kernel, bias)
        if reason is None and x.dim() != 5:
            return f"an input of {x.dim()} axes"
        return reason

    def count_keras(self, reason: str) -> None:
        """As the modules do."""
        choice.count_torch(reason)

    def convolve(
        self,
        convolution: Convolution,
        output_shape: ShapeFunction,
        x: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        norm: Norm | None = None,
    ) -> Tensor:
        """By views of Keras's tensors in torch's order: nothing is copied."""
        last = convolution.data_format == CHANNELS_LAST
        x = x.permute(_TO_FIRST) if last else x
        weight = kernel.permute(_WEIGHT_AXES)
        dilation = convolution.dilation
        padding = _padding(convolution, x, kernel)
        geometry = (convolution.strides, padding, dilation, False, (0, 0, 0), convolution.groups)
        chain = convolution.post_ops
        if norm is not None or (last and chain):
            # its result has the channels last in memory
            parts, epsilon = ([], 0.0) if norm is None else (list(norm[:4]), norm.epsilon)
            y = FUSED_CONVOLUTION(x, weight, bias, parts, epsilon, *_NOTHING, chain, *geometry)
        else:
            y = post_ops.apply(CONVOLUTION(x, weight, bias, *geometry), chain)
        return y.permute(_TO_LAST) if last else y

    def max_pool(self, x: Any, window: Triple, data_format: str) -> Tensor | None:
        """By this package's operator, of a view in torch's order."""
        if _why_torch(x) is not None:
            return None
        last = data_format == CHANNELS_LAST
        first = x.permute(_TO_FIRST) if last else x
        if not training.takes(first, window):
            return None
        y = training.MAX_POOLING(first, window)[0]
        return y.permute(_TO_LAST) if last else y

    def batch_norm(self, x: Any, norm: Norm, of_batch: bool, data_format: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """By torch's function, of a view in torch's order."""
        if _why_torch(x) is not None or x.dtype != torch.float32:
            return None
        last = data_format == CHANNELS_LAST
        first = x.permute(_TO_FIRST) if last else x
        mean, variance, gamma, beta, epsilon = norm
        if of_batch:
            y, mean, root = torch.native_batch_norm(first, gamma, beta, None, None, True, 0.0, epsilon)
            mean, variance = mean.detach(), root.detach().double().pow(-2).sub(epsilon).clamp(min=0).float()
        else:
            y = torch.nn.functional.batch_norm(first, mean, variance, gamma, beta, False, 0.0, epsilon)
        return (y.permute(_TO_LAST) if last else y), mean, variance


def _why_torch(x: Any) -> str | None:
    """Why Keras's own code is to compute what has no weights of this package's; None where it need not."""
    reason = choice.why_torch(x, x, None) if isinstance(x, Tensor) else "no tensor"
    return reason or (None if x.dim() == 5 and x.device.type == "cpu" else "no volume in the CPU's memory")


def _padding(convolution: Convolution, x: Tensor, kernel: Tensor) -> tuple[int, ...]:
    """As the operators take it; sizes are looked at only where it depends on them."""
    window = kernel.shape[:3]
    if convolution.padding == "same" and convolution.strides != (1, 1, 1):
        pairs = same_padding(tuple(x.shape[2:]), tuple(window), convolution.strides, convolution.dilation)
        return tuple(pad for pair in pairs for pad in pair)
    return explicit_padding(convolution.padding, window, convolution.dilation)
