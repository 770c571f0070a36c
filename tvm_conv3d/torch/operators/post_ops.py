"""Chains of post-ops (:mod:`tvm_conv3d.spec.post_ops`) on tensors, by torch's own differentiable functions.

Besides the chains' steps there is `prelu`: `leaky_relu` with the one value of a tensor, the slope, as its parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tvm_conv3d.spec.normalization import PRELU
from tvm_conv3d.spec.post_ops import ADD, PostOp, canonical


def apply(y: Tensor, post_ops: Sequence[str], residual: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """What a chain makes of `y`.

    Args:
        y: (batch, channels, depth, height, width).
        post_ops: the chain.
        residual: what `add` adds, as torch adds tensors; None where the chain has no `add`.
        slope: of `prelu`, one value or one for each channel; None where the chain has no `prelu`.

    Raises:
        ValueError: a step is unknown, or an operand is missing or belongs to no step.
    """
    canonical([step for step in post_ops if step != PRELU])
    for step, name, operand in ((ADD, "residual", residual), (PRELU, "slope", slope)):
        if (step in post_ops) != (operand is not None):
            raise ValueError(
                f"`{name}` must be a tensor where `post_ops` has {step!r}, else None. Received: post_ops="
                f"{list(post_ops)}, {name} of type {type(operand).__name__}"
            )
    for step in post_ops:
        if step == PRELU:
            y = functional.prelu(y, slope.to(y.dtype))  # type: ignore[union-attr]
            continue
        name, values = PostOp.parse(step)
        y = y + residual if name == ADD else FORMULAS[name](y, *values)
    return y


def with_slope(post_ops: Sequence[str], slope: Tensor | None) -> tuple[str, ...] | None:
    """The chain with `leaky_relu` for its `prelu`; None where there are many slopes, or one that no chain can have."""
    if slope is None and PRELU not in post_ops:
        return tuple(post_ops)
    if slope is None or PRELU not in post_ops or slope.numel() != 1 or not slope.is_floating_point():
        return None
    value = slope.item()
    step = f"leaky_relu:{value!r}"
    return tuple(step if each == PRELU else each for each in post_ops) if math.isfinite(value) else None


def _softplus(x: Tensor, beta: float) -> Tensor:
    # torch's own is linear from a threshold on
    return torch.logaddexp(x * beta, x.new_zeros(())) / beta


def _sparse_plus(x: Tensor) -> Tensor:
    return torch.where(x < 1, 0.25 * (x.clamp(min=-1) + 1).square(), x)


def _squareplus(x: Tensor, b: float) -> Tensor:
    root = (x.square() + b).sqrt()
    # x + root cancels for negative x: the product of the two solutions is b / 4
    return torch.where(x < 0, b / 2 / (root - x), 0.5 * (x + root))


#: All of :data:`tvm_conv3d.spec.post_ops.FUSED_ACTIVATIONS`, with their parameters.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "gelu": lambda x, approximate: functional.gelu(x, approximate=approximate),
    "silu": functional.silu,
    "mish": functional.mish,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": functional.logsigmoid,
    "hard_sigmoid": functional.hardsigmoid,
    "hard_silu": functional.hardswish,
    "hard_tanh": functional.hardtanh,
    "hard_shrink": functional.hardshrink,
    "soft_shrink": functional.softshrink,
    "tanh": torch.tanh,
    "tanh_shrink": functional.tanhshrink,
    "softplus": _softplus,
    "softsign": functional.softsign,
    "exponential": torch.exp,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: (0.5 * (x + 1)).clamp(0, 1),
    "squareplus": _squareplus,
}
