"""Arguments of torch's convolutions in the form that this package's operators take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: What is computed here, and its names.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def three(value: Any) -> tuple[int, ...]:
    """An integer for all axes, or one for each: users set attributes to single ones, which torch's functions take."""
    if isinstance(value, int):
        return (value,) * 3
    values = tuple(value)
    return values * 3 if len(values) == 1 else values


def explicit_padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """A convolution's padding as three numbers, or as six: before and after each axis.

    Args:
        padding: as torch's convolutions take it; of "same" an odd zero is behind.
        kernel, dilation: of the convolution.
    """
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple(pad for total in totals for pad in (total // 2, total - total // 2))
    return (0, 0, 0) if padding == "valid" else three(padding)
