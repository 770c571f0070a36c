"""Normalizations by the definition, in float64; for tests that have made sure of torch."""

from __future__ import annotations

from typing import Any

import torch

from tvm_conv3d.reference import oracle

#: Largest relative error (2-norm).
BOUNDS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

#: How many groups of a number of channels, by the kind of normalization; None: statistics are given.
KINDS: dict[str, Any] = {
    "instance": lambda channels: channels,
    "group": lambda channels: next(n for n in (4, 3, 2, 1) if channels % n == 0 and (n < channels or channels == 1)),
    "given": lambda channels: None,
}


#: Arguments behind the groups of a normalization alone.
PLAIN = (None, None, None, None, 1e-5, None, None, [])


def close(result: Any, wanted: Any, bound: float = 1e-6) -> None:
    assert result.shape == wanted.shape
    assert oracle.relative_error(result.detach().double().numpy(), wanted.detach().double().numpy()) < bound


def exact(x: Any, groups: int | None, epsilon: float, *vectors: Any) -> Any:
    """The normalization in float64, by the definition; the vectors are mean, variance, weight and bias."""
    x, (mean, variance, weight, bias) = x.double(), (None if v is None else v.double() for v in vectors)
    shape = (-1, 1, 1, 1)
    if groups is None:
        y = (x - mean.view(shape)) / (variance.view(shape) + epsilon).sqrt()
    else:
        grouped = x.reshape(x.shape[0], groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        y = (centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()).reshape(x.shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def vectors(channels: int, given: bool, affine: bool = True, dtype: Any = torch.float32) -> list[Any]:
    """Mean, variance, weight and bias."""
    found = [torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels), torch.randn(channels)]
    present = (given, given, affine, affine)
    return [v.to(dtype) if here else None for v, here in zip(found, present, strict=True)]
