"""Layers of Keras's that this package computes, for the checks of each of Keras's backends."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_cases
from layer_samples import sample
from tvm_conv3d.keras import Conv3D, counters
from tvm_conv3d.layer.conv3d import Conv3D as Twin

#: Keras's backend.
BACKEND = keras.config.backend()


def numpy(value: Any) -> np.ndarray:
    """A tensor of the backend's."""
    return np.asarray(keras.ops.convert_to_numpy(value))


def built(cls: Any = Conv3D, shape: tuple[int, ...] | None = None, **arguments: Any) -> Any:
    """A layer with weights at random."""
    arguments = {"filters": 6, "kernel_size": 3, **arguments}
    layer = cls(**arguments)
    layer.build(keras_cases.input_shape(arguments) if shape is None else shape)
    layer.set_weights([sample(weight.shape, seed=1 + number) for number, weight in enumerate(layer.weights)])
    return layer


def expected(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's output in float64, from the definition of a convolution."""
    return keras_cases.expected(Twin.from_keras(layer), x)


def all_ours(most: int | None = None) -> bool:
    """Whether all was computed by this package, and something was: `most` convolutions at most."""
    counted = counters()
    assert counted.keras == {}
    return 0 < counted.ours <= (counted.ours if most is None else most)
