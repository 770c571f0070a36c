"""Gradients against torch's in float64, and that they are asked for: eagerly and in functions that are compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_cases
from keras_door import all_ours, built, gradients
from layer_samples import sample
from tvm_conv3d.reference.oracle import relative_error
from tvm_conv3d.spec import CHANNELS_FIRST, same_padding

torch = pytest.importorskip("torch", reason="torch is not installed")

CASES: list[dict[str, Any]] = [
    {},
    {"activation": "relu", "padding": "same"},
    {"activation": "silu", "padding": "same", "strides": 2},
    {"activation": "gelu", "data_format": "channels_first", "strides": (1, 2, 1)},
    {"dilation_rate": (1, 2, 1), "activation": "tanh"},
    {"groups": 2, "padding": "same", "activation": "leaky_relu"},
    {"groups": 2, "data_format": "channels_first", "use_bias": False},
]


def expected(layer: Any, x: np.ndarray, of_y: np.ndarray) -> list[np.ndarray]:
    """The gradients in float64."""
    data, *weights = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, *layer.get_weights()))
    first = layer.data_format == CHANNELS_FIRST
    given = data if first else data.permute(0, 4, 1, 2, 3)
    if layer.padding == "same":
        pads = same_padding(tuple(given.shape[2:]), layer.kernel_size, layer.strides, layer.dilation_rate)
        given = torch.nn.functional.pad(given, [pad for pair in reversed(pads) for pad in pair])
    y = torch.nn.functional.conv3d(
        given,
        weights[0].permute(4, 3, 0, 1, 2),
        weights[1] if layer.use_bias else None,
        layer.strides,
        0,
        layer.dilation_rate,
        layer.groups,
    )
    activations = {
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "tanh": torch.tanh,
        "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.2),
        "linear": lambda t: t,
    }
    y = activations[layer.activation.__name__](y if first else y.permute(0, 2, 3, 4, 1))
    return [each.numpy() for each in torch.autograd.grad((y * torch.tensor(of_y)).sum(), [data, *weights])]


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_gradients(arguments: dict[str, Any], traced: bool) -> None:
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    for found, right in zip(gradients(layer, x, of_y, traced=traced), expected(layer, x, of_y), strict=True):
        assert relative_error(found, right) < 1e-5
    assert all_ours()


def test_a_frozen_layer_has_the_gradient_of_its_input() -> None:
    layer, x = built(), sample(keras_cases.input_shape({}))
    layer.trainable = False
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    (found,) = gradients(layer, x, of_y)
    assert relative_error(found, expected(layer, x, of_y)[0]) < 1e-5
