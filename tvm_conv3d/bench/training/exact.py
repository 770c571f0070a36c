"""keras-io's CT network in float64, by PyTorch's functions: what every backend's float32 is compared with."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tvm_conv3d.bench.training.results import INFERENCE


def outcome(network: Any, kind: str, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The gradients of all trainable weights, in their order; in inference the means of each channel, and the result.

    Args:
        network: a chain of layers as :func:`tvm_conv3d.bench.training.keras_ways.ct_network` has them; dropout is left
            out.
        kind: what is timed.
        x: (samples, width, height, depth, 1).
        y: labels, (samples, 1).

    Raises:
        ImportError: PyTorch is not installed.
        TypeError: there is a layer of another kind.
    """
    import torch

    values = {
        id(weight): torch.tensor(keras.ops.convert_to_numpy(weight), dtype=torch.float64) for weight in network.weights
    }
    trained = [values[id(weight)].requires_grad_(kind != INFERENCE) for weight in network.trainable_weights]
    h, means = torch.tensor(x, dtype=torch.float64).permute(0, 4, 1, 2, 3), None
    for layer in network.layers:
        h = _called(layer, [values[id(weight)] for weight in layer.weights], h, kind)
        means = h if isinstance(layer, keras.layers.GlobalAveragePooling3D) else means
    if kind == INFERENCE:
        return [np.asarray(means), h.numpy()]
    loss = torch.nn.functional.binary_cross_entropy(h, torch.tensor(y, dtype=torch.float64))
    return [each.numpy() for each in torch.autograd.grad(loss, trained)]


def _called(layer: Any, weights: list[Any], h: Any, kind: str) -> Any:
    """A layer of a tensor with the channels first."""
    import torch

    functions, layers = torch.nn.functional, keras.layers
    activations = {"relu": torch.relu, "sigmoid": torch.sigmoid}
    match layer:
        case layers.Conv3D():
            kernel, bias = weights
            return activations[layer.activation.__name__](functions.conv3d(h, kernel.permute(4, 3, 0, 1, 2), bias))
        case layers.MaxPooling3D():
            return functions.max_pool3d(h, layer.pool_size)
        case layers.BatchNormalization():
            gamma, beta, *moments = weights
            given = moments if kind == INFERENCE else (None, None)
            return functions.batch_norm(h, *given, gamma, beta, kind != INFERENCE, eps=layer.epsilon)
        case layers.GlobalAveragePooling3D():
            return h.mean((2, 3, 4))
        case layers.Dense():
            kernel, bias = weights
            return activations[layer.activation.__name__](h @ kernel + bias)
        case layers.InputLayer() | layers.Dropout():
            return h
    raise TypeError(f"The network in float64 has no layers of type {type(layer)}")
