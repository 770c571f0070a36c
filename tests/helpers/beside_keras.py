"""Keras's own layer beside ours. Where Keras is not installed, the test file that imports this is skipped."""

from __future__ import annotations

import os
import re
import warnings

import numpy as np
import pytest

from layer_samples import SHAPE, sample
from tvm_conv3d.layer.conv3d import Conv3D

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed; what it would do is tested against its definition")
if not hasattr(keras.config, "dtype_policy") or keras.config.backend() == "tensorflow":
    pytest.skip("needs Keras 3 with a backend without known Conv3D bugs", allow_module_level=True)


def numpy(value):
    return np.asarray(keras.ops.convert_to_numpy(value))


def outcome(make):
    """Type and message of what `make` raises, with the elements of printed sets and terminal codes put in order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make()
    except Exception as error:
        text = re.sub(r"\{'[^:}]*'\}", lambda match: str(sorted(match[0][1:-1].split(", "))), str(error))
        return type(error), re.sub("\x1b\\[[0-9;]*m", "", text)
    return None


def both(**arguments):
    """A layer of each, built for SHAPE with the same weights."""
    theirs = keras.layers.Conv3D(**{"filters": 4, "kernel_size": 3, **arguments})
    theirs.build(SHAPE)
    theirs.set_weights([sample(weight.shape, seed=1 + i) for i, weight in enumerate(theirs.weights)])
    ours = Conv3D(**{"filters": 4, "kernel_size": 3, **arguments})
    ours.build(SHAPE)
    ours.set_weights(theirs.get_weights())
    return ours, theirs
