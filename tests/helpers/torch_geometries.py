"""Geometries of the operators in torch's terms, and tensors for them; for tests that have made sure of torch."""

from __future__ import annotations

from typing import Any

import torch

#: The operator's arguments behind its tensors; weights are of (4, 2, 3, 2, 1) elements, inputs of 4 channels.
GEOMETRIES: dict[str, tuple[Any, ...]] = {
    "plain": ((1, 1, 1), (0, 0, 0), (1, 1, 1), False, (0, 0, 0), 2),
    "strided": ((2, 1, 2), (1, 0, 1), (1, 2, 1), False, (0, 0, 0), 2),
    "six pads": ((1, 2, 1), (1, 0, 0, 2, 1, 1), (1, 1, 1), False, (0, 0, 0), 2),
    "transposed": ((2, 2, 1), (1, 0, 0), (1, 1, 1), True, (1, 0, 0), 2),
}


def given(geometry: tuple[Any, ...], dtype: Any = torch.float64, bias: bool = True) -> list[Any]:
    x, weight = torch.randn(2, 4, 5, 4, 3, dtype=dtype), torch.randn(4, 2, 3, 2, 1, dtype=dtype)
    filters = 2 * geometry[-1] if geometry[3] else 4
    tensors = (x, weight, torch.randn(filters, dtype=dtype) if bias else None)
    return [None if t is None else t.requires_grad_() for t in tensors]
