"""Inputs and weights at random for layers."""

from __future__ import annotations

import numpy as np

from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.support import dtypes

#: Of an input that most layers are built for.
SHAPE = (2, 5, 5, 5, 4)


def sample(shape: tuple[int, ...] = SHAPE, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtypes.numpy_dtype(dtype))


def random_weights(layer: Conv3D, seed: int = 1) -> Conv3D:
    """The built layer itself, with other weights."""
    layer.set_weights([sample(weight.shape, seed=seed + i) for i, weight in enumerate(layer.weights)])
    return layer
