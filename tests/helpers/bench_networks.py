"""Networks for the benchmark's tests, named as `bench_networks:tiny` and so on."""

from __future__ import annotations

import os
from typing import Any

SHAPE = (1, 2, 8, 8, 8)


def tiny() -> tuple[Any, tuple[int, ...]]:
    from torch import nn

    first = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2))
    return nn.Sequential(first, nn.ConvTranspose3d(4, 2, 2, stride=2)), SHAPE


def breaking() -> tuple[Any, tuple[int, ...]]:
    """More graphs of one function than torch's compiler usually makes."""
    import torch
    from torch import nn

    class Part(nn.Conv3d):
        def forward(self, x: Any) -> Any:
            torch._dynamo.graph_break()
            return super().forward(x).relu()

    channels = range(2, 13)
    return nn.Sequential(*(Part(one, one + 1, 1) for one in channels)), SHAPE


def broken() -> tuple[Any, tuple[int, ...]]:
    raise ImportError("no such library")


def crashing() -> tuple[Any, tuple[int, ...]]:
    os._exit(7)
