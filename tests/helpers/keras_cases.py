"""Arguments of layers whose results are compared: with Keras, and with the oracle on CPUs and GPUs alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec

#: Of layers that are compared with Keras's own.
FORWARD: list[dict[str, Any]] = [
    {},
    {"padding": "same"},
    {"padding": "same", "strides": 2},
    {"strides": (1, 2, 3)},
    {"dilation_rate": 2},
    {"dilation_rate": (1, 2, 1), "padding": "same"},
    {"groups": 2},
    {"groups": 4, "filters": 8, "use_bias": False},
    {"kernel_size": (1, 2, 3), "padding": "same", "strides": (2, 1, 2)},
    {"kernel_size": 1, "activation": "relu"},
    {"dtype": "float64"},
    {"dtype": "mixed_bfloat16", "activation": "relu"},
]

#: Of layers that are called in the layer's own tests.
CALLS: list[dict[str, Any]] = [
    {},
    {"padding": "same", "activation": "relu"},
    {"padding": "same", "strides": 2},
    {"dilation_rate": 2, "use_bias": False},
    {"groups": 2, "filters": 6},
    {"data_format": "channels_first", "padding": "same", "strides": (1, 2, 2), "activation": "swish"},
]

#: Channels of all inputs.
CHANNELS = 4

_STEPS: list[dict[str, Any]] = [
    {},
    {"strides": 2},
    {"strides": (1, 2, 3)},
    {"dilation_rate": 2},
    {"dilation_rate": (1, 2, 1)},
]


def grid() -> list[dict[str, Any]]:
    """Every padding, layout, stride or dilation, number of groups and kind of kernel, with and without a bias."""
    found: list[dict[str, Any]] = []
    axes = itertools.product(
        ("valid", "same"), (CHANNELS_LAST, CHANNELS_FIRST), _STEPS, ((1, 12), (2, 6), (CHANNELS, 8)), (3, (3, 2, 2), 1)
    )
    for padding, data_format, steps, (groups, filters), kernel in axes:
        if kernel == 1 and "dilation_rate" in steps:
            continue
        case = {"padding": padding, "data_format": data_format, "groups": groups, "filters": filters}
        found.append({**case, **steps, "kernel_size": kernel, "use_bias": len(found) % 2 == 0})
    return found


def input_shape(arguments: dict[str, Any]) -> tuple[int, ...]:
    """Of an input of two samples with three odd sizes."""
    size = (5, 6, 7)
    return (2, CHANNELS, *size) if arguments.get("data_format") == CHANNELS_FIRST else (2, *size, CHANNELS)


def spec_of(arguments: dict[str, Any]) -> Conv3DSpec:
    """The problem that a layer of these arguments poses."""
    layer = Conv3D(**arguments)
    return layer._geometry.spec(input_shape(arguments), layer.compute_dtype, layer.use_bias, ())


def expected(layer: Conv3D, x: np.ndarray) -> np.ndarray:
    """A built layer's output in float64, from the definition of a convolution."""
    spec = layer._geometry.spec(x.shape, "float64", layer.bias is not None, ())
    bias = None if layer.bias is None else layer.bias.numpy()
    out = oracle.convolve(spec, x.astype(np.float64), np.asarray(layer.kernel), bias)
    return layer.activation(out)
