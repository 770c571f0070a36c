"""Modules that torch.jit compiles, and how; for tests that have made sure of torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

X = torch.randn(1, 2, 12, 8, 16, generator=torch.Generator().manual_seed(0))
#: Of another size.
Y = torch.randn(2, 2, 8, 12, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """A residual block whose activations write in place."""

    def __init__(self, entering: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(entering, channels, 3, padding=1)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(channels)
        self.shortcut = nn.Conv3d(entering, channels, 1)
        self.act = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return functional.relu(y)


class UNet(nn.Module):
    """Two levels: pool, dropout, upsampling by interpolation and by a transposed convolution, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = Residual(2, 8)
        self.pool = nn.MaxPool3d(2)
        self.drop = nn.Dropout3d(0.5)
        self.down = Residual(8, 16)
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.leave = Residual(32, 8)
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.enter(x)
        y = self.down(self.drop(self.pool(first)))
        wide = functional.interpolate(y, scale_factor=2.0, mode="trilinear", align_corners=False)
        y = torch.cat([first, functional.hardswish(self.norm(self.up(y))), wide], 1)
        return torch.softmax(self.head(self.leave(y)), 1)


class Base(nn.Module):
    """What modules have that do more than compute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.factor = 3
        self.factors = [1.0, 2.0]
        self.named = {"a": 2.0}
        self.plain = torch.full((2,), 2.0)
        self.several = [torch.ones(1)]
        self.register_buffer("total", torch.zeros(()))


def made(kind: type[nn.Module], *args: Any) -> Any:
    """A module in eval mode, its batch norms as after training."""
    torch.manual_seed(0)
    module = kind(*args).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.running_mean, 0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def scripted(module: nn.Module) -> Any:
    return _quietly(torch.jit.script, module)


def traced(module: nn.Module, x: torch.Tensor = X) -> Any:
    return _quietly(torch.jit.trace, module, x)


def frozen(module: nn.Module) -> Any:
    return _quietly(torch.jit.freeze, scripted(module))


def optimized(module: nn.Module) -> Any:
    return _quietly(torch.jit.optimize_for_inference, scripted(module))


def loaded(module: nn.Module) -> Any:
    """By way of a file."""
    file = io.BytesIO()
    _quietly(torch.jit.save, scripted(module), file)
    file.seek(0)
    return _quietly(torch.jit.load, file)


def inside(module: nn.Module) -> Any:
    """Within a module of Python."""
    return nn.Sequential(scripted(module)).eval()


def frozen_trace(module: nn.Module) -> Any:
    return _quietly(torch.jit.freeze, traced(module))


#: All ways in which users have a script.
WAYS: dict[str, Callable[[Any], Any]] = {
    "scripted": scripted,
    "traced": traced,
    "frozen": frozen,
    "frozen trace": frozen_trace,
    "loaded": loaded,
    "inside of a module": inside,
}


def _quietly(function: Callable[..., Any], *args: Any) -> Any:
    """Without torch's words on the age of torch.jit, and on what a trace leaves out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)
