"""The networks: published structures and sizes, random weights, one sample of float32."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

#: What a network's function gives: the module, and the shape of its input.
Made = tuple[Any, tuple[int, ...]]

_VIDEO = (1, 3, 16, 112, 112)
_CUBE = (1, 1, 96, 96, 96)


def _video(name: str) -> Made:
    return getattr(importlib.import_module("torchvision.models.video"), name)(weights=None), _VIDEO


def _monai() -> Any:
    return importlib.import_module("monai.networks.nets")


def _basicunet() -> Made:
    return _monai().BasicUNet(spatial_dims=3, in_channels=1, out_channels=2), _CUBE


def _unet() -> Made:
    """That of MONAI's spleen tutorial, on a window of its sliding-window inference."""
    size = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}
    return _monai().UNet(3, 1, 2, **size, num_res_units=2, norm="batch"), (1, 1, 160, 160, 160)


def _dynunet(edge: int) -> Made:
    """nnU-Net's plan for full resolution in 3-D."""
    strides = (1, 2, 2, 2, 2, 2)
    module = _monai().DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        kernel_size=(3,) * 6,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=(32, 64, 128, 256, 320, 320),
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )
    return module, (1, 1, edge, edge, edge)


def _segresnet() -> Made:
    """That of MONAI's BraTS tutorial."""
    module = _monai().SegResNet(3, 16, 4, 3, dropout_prob=0.2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    return module, (1, 4, 128, 128, 128)


def _unetr() -> Made:
    module = _monai().UNETR(1, 14, _CUBE[2:], feature_size=16, hidden_size=768, mlp_dim=3072, num_heads=12)
    return module, _CUBE


def _swinunetr() -> Made:
    kind = _monai().SwinUNETR
    # later versions take any size
    size = {"img_size": _CUBE[2:]} if "img_size" in inspect.signature(kind).parameters else {}
    return kind(in_channels=1, out_channels=14, feature_size=48, **size), _CUBE


def _resnet50() -> Made:
    """MedicalNet's."""
    return _monai().resnet50(spatial_dims=3, n_input_channels=1, num_classes=2), (1, 1, 64, 112, 112)


def _densenet121() -> Made:
    return _monai().DenseNet121(spatial_dims=3, in_channels=1, out_channels=2), _CUBE


NETWORKS: dict[str, Callable[[], Made]] = {
    "r3d_18": lambda: _video("r3d_18"),
    "mc3_18": lambda: _video("mc3_18"),
    "r2plus1d_18": lambda: _video("r2plus1d_18"),
    "basicunet": _basicunet,
    "unet": _unet,
    "dynunet": lambda: _dynunet(96),
    "dynunet128": lambda: _dynunet(128),
    "segresnet": _segresnet,
    "unetr": _unetr,
    "swinunetr": _swinunetr,
    "resnet50": _resnet50,
    "densenet121": _densenet121,
}

#: Run where none is named.
USUAL = ("r3d_18", "mc3_18", "r2plus1d_18", "basicunet", "unet", "dynunet", "segresnet", "unetr")


def check(names: Sequence[str]) -> None:
    """Refuses what is no network.

    Raises:
        ValueError: a name that is neither in :data:`NETWORKS` nor `module:function`.
    """
    for name in names:
        if name not in NETWORKS and ":" not in name:
            raise ValueError(
                f"A network must be one of {', '.join(NETWORKS)}, or module:function, which returns a module and the "
                f"shape of its input. Received: {name!r}"
            )


def make(name: str) -> tuple[Any, Any]:
    """A network as for inference, and its input; the same for the same name.

    Args:
        name: of :data:`NETWORKS`, or `module:function`.

    Returns:
        The module in eval mode, and a tensor of float32.

    Raises:
        ValueError: no such name.
        ModuleNotFoundError: the library that has it is not installed.
    """
    import torch

    check([name])
    torch.manual_seed(0)
    place, _, function = name.partition(":")
    module, shape = (getattr(importlib.import_module(place), function) if function else NETWORKS[name])()
    for part in module.modules():
        # as after training: neither a mean of 0 nor a variance of 1 that could be dropped
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            torch.nn.init.normal_(part.running_mean, 0, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval(), torch.randn(shape)
