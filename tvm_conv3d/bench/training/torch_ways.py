"""MONAI's BasicUNet in training, in PyTorch's own modes and by this package."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import torch

from tvm_conv3d.bench.training.ways import Network, Way
from tvm_conv3d.torch import accelerate

MODES = ("eager", "eager_cl", "compile", "compile_cl", "ours", "ours_cl")

#: Samples, channels and cells of a patch.
SHAPE = (1, 1, 64, 64, 64)

_FEATURES = (32, 32, 64, 128, 256, 32)


def prepare(kind: str, small: bool) -> Network:
    """The network, with the same weights and data for all modes.

    Args:
        kind: "step".
        small: a network and a patch for tests.

    Raises:
        ImportError: MONAI is not installed.
    """
    torch.manual_seed(0)
    nets = importlib.import_module("monai.networks.nets")
    features = (4, 4, 4, 8, 8, 4) if small else _FEATURES
    module = nets.BasicUNet(spatial_dims=3, in_channels=1, out_channels=2, features=features)
    shape = (*SHAPE[:2], 16, 16, 32) if small else SHAPE
    x, labels = torch.randn(shape), torch.randint(0, 2, (shape[0], *shape[2:]))
    return of_weights(module, x, labels)


def of_weights(module: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Network:
    """A module with its weights and data."""

    def exact() -> list[np.ndarray]:
        return of_module("eager", copy.deepcopy(module).double(), x.double(), labels).outcome()

    return Network(lambda mode: of_module(mode, module, x, labels), exact)


def of_module(mode: str, module: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Way:
    """A step of Adam's on the cross entropy of a module's result, in one of :data:`MODES`."""
    net = copy.deepcopy(module).train()
    if mode.startswith("ours"):
        net = accelerate(net)
    if mode.endswith("_cl"):
        net, x = (what.to(memory_format=torch.channels_last_3d) for what in (net, x))
    called: Any = torch.compile(net, dynamic=False) if mode.startswith("compile") else net
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def derive() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(called(x), labels).backward()

    def gradients() -> list[np.ndarray]:
        derive()
        return [parameter.grad.numpy().copy() for parameter in net.parameters() if parameter.grad is not None]

    def step() -> None:
        derive()
        optimizer.step()

    return Way(gradients, step)
