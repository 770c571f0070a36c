"""Modules of torch's beside ours with the same parameters; for tests that have made sure of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tvm_conv3d.torch as ours
from problems import BOUNDS, WINOGRAD_BOUND
from tvm_conv3d.reference import oracle

PAIRS = [(torch.nn.Conv3d, ours.Conv3d), (torch.nn.ConvTranspose3d, ours.ConvTranspose3d)]


def check(result: Any, wanted: np.ndarray, dtype: str = "float32") -> None:
    assert tuple(result.shape) == wanted.shape
    assert oracle.relative_error(result.detach().double().numpy(), wanted) < max(BOUNDS[dtype], WINOGRAD_BOUND)


def all_ours(count: int) -> bool:
    return ours.counters() == ours.Counters(count, {})


def pair(transposed: bool = False, **more: Any) -> tuple[Any, Any]:
    """A module of torch's, and ours with the same parameters."""
    theirs, mine = PAIRS[transposed]
    module = theirs(4, 6, 3, padding=1, **more)
    return module, mine.from_torch(module)
