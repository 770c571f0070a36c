"""Fused convolutions by torch's own differentiable functions: what gradients come from, and what computes the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from tvm_conv3d.torch.operators import post_ops
from tvm_conv3d.torch.operators.geometry import Geometry, in_torch


class Epilogue(NamedTuple):
    """What becomes of a convolution's sums: a batch norm with fixed statistics, then a chain of steps.

    Attributes:
        batch_norm: running mean and variance, weight or None, bias or None; none at all for no batch norm.
        epsilon: of the batch norm.
        residual, slope, post_ops: as :func:`tvm_conv3d.torch.operators.post_ops.apply` takes them.
    """

    batch_norm: Sequence[Tensor | None]
    epsilon: float
    residual: Tensor | None
    slope: Tensor | None
    post_ops: Sequence[str]


def composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    geometry: Geometry,
    convolve: Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor] = in_torch,
) -> Tensor:
    """The fused convolution, step by step, in the order of memory that torch chooses.

    Args:
        x, weight, bias: as torch's functions take them.
        epilogue: what becomes of the sums.
        geometry: of the convolution.
        convolve: computes it; torch's own code, unless it is given.

    Raises:
        ValueError: the batch norm has not four parts, or see :func:`tvm_conv3d.torch.operators.post_ops.apply`.
        RuntimeError: shapes or types do not fit together, in torch's words.
    """
    batch_norm, epsilon, residual, slope, steps = epilogue
    y = convolve(x, weight, bias, geometry)
    if len(batch_norm) not in (0, 4):
        raise ValueError(
            "`batch_norm` must be empty, or running mean, running variance, weight or None, and bias or None. "
            f"Received: {len(batch_norm)} of them"
        )
    if batch_norm:
        mean, variance, gamma, beta = batch_norm
        y = functional.batch_norm(y, mean, variance, gamma, beta, training=False, eps=epsilon)
    return post_ops.apply(y, steps, residual, slope)


def in_channels_last(y: Tensor) -> Tensor:
    """`y` in the memory of `torch.channels_last_3d`, with its strides along axes of one element, too."""
    last = y.permute(0, 2, 3, 4, 1)
    # a view has strides of its own; vmap knows no clone in this order
    return last.flatten().view(last.shape).permute(0, 4, 1, 2, 3)
