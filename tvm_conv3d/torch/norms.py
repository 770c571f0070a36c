"""Instance norm in training, in the order of memory in which convolutions leave their results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tvm_conv3d.torch.choice import why_torch

_TYPES = (torch.float32, torch.float64)


class InstanceNorm3d(torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` whose gradients take fewer copies; `acceleration.accelerate` puts it in its place.

    torch's own function joins samples and channels to one axis, which copies `channels_last_3d` volumes, and returns a
    view, so that an activation that writes over it has its gradient copied to and fro. Sample by sample the same code
    of torch's needs neither.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As torch's module.

        Args:
            input: (batch, channels, depth, height, width), or one sample without the batch.
        """
        if self._takes(input):
            result: Tensor = _InstanceNorm.apply(input, self.weight, self.bias, self.eps)
            return result
        return super().forward(input)

    def _takes(self, x: Any) -> bool:
        """Whether gradients are asked for, and statistics are of the sample alone."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.running_mean is not None:
            return False
        if (
            why_torch(x, x, None) is not None
            or x.dim() != 5
            or x.dtype not in _TYPES
            or x.shape[1] != self.num_features
        ):
            return False
        parameters = [each for each in (self.weight, self.bias) if each is not None]
        if any(each.dtype != x.dtype for each in parameters) or x.numel() <= x.shape[0] * x.shape[1]:
            return False
        return x.device.type == "cpu" and any(each.requires_grad for each in (x, *parameters))


class _InstanceNorm(torch.autograd.Function):
    """Each sample by torch's batch norm of that sample."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
        # of other orders torch's code writes nonsense
        data = x.contiguous(memory_format=_order(x))
        result = torch.empty_like(data)
        means, roots = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
        for number in range(x.shape[0]):
            one = slice(number, number + 1)
            torch.ops.aten.native_batch_norm.out(
                *(data[one], weight, bias, None, None, True, 0.0, epsilon),
                out=result[one],
                save_mean=means[number],
                save_invstd=roots[number],
            )
        ctx.save_for_backward(x, weight, means, roots)
        ctx.epsilon = epsilon
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, means, roots = ctx.saved_tensors
        order = _order(x)
        x, gradient = (each.contiguous(memory_format=order) for each in (x, gradient))
        of_weight = weight is not None
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                *(gradient[one], x[one], weight, None, None, means[one.start], roots[one.start]),
                *(True, ctx.epsilon, [ctx.needs_input_grad[0], of_weight, of_weight]),
            )
            for one in (slice(number, number + 1) for number in range(x.shape[0]))
        ]
        whole, weights, biases = zip(*parts, strict=True)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = whole[0] if len(whole) == 1 else torch.cat(whole)
        summed = [torch.stack(each).sum(0) if of_weight else None for each in (weights, biases)]
        return of_x, summed[0], summed[1] if ctx.needs_input_grad[2] else None, None


def _order(x: Tensor) -> torch.memory_format:
    """Of the two orders of memory that torch's code takes, that of `x`, or else the contiguous one."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format
