"""A network whose calls are replayed, and how its results are judged; for tests that have made sure of torch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

X = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """What residual networks are made of, by functions that write in place."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(8)
        self.conv2 = nn.Conv3d(8, 8, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(8, affine=True)
        self.shortcut = nn.Conv3d(channels, 8, 1)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.slope = nn.PReLU()

    def forward(self, x: Any) -> Any:
        out = self.act(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.slope(out)


def network() -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(Block(), nn.MaxPool3d(2), Block(8), nn.Upsample(scale_factor=2, mode="nearest")).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def check(fast: Any, module: Any, x: Any = X) -> None:
    """Against torch in float64."""
    with torch.inference_mode():
        result, wanted = fast(x), copy.deepcopy(module).double()(x.double())
    error = (result.double() - wanted).norm() / wanted.norm()
    assert result.shape == wanted.shape and result.dtype == x.dtype
    assert float(error) < 1e-5


def replayed(fast: Any) -> int:
    """How many shapes are replayed."""
    return sum(each.reason is None for each in fast.report.replayed)


def reasons(fast: Any) -> str:
    return " | ".join([*(each.reason or "" for each in fast.report.replayed), *fast.report.by_layers])
