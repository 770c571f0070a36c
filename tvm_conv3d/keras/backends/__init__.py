"""What computes a layer's convolution, by Keras's backend, which is one for the process."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import keras

from tvm_conv3d.keras.backends.others import Others
from tvm_conv3d.keras.backends.protocol import Backend

#: Keras's names of backends, and where their classes are.
_BACKENDS = {
    "jax": "tvm_conv3d.keras.backends.jax.Jax",
    "tensorflow": "tvm_conv3d.keras.backends.tensorflow.TensorFlow",
    "torch": "tvm_conv3d.keras.backends.torch.Torch",
}


def _made(name: str) -> Backend:
    """The backend of Keras's name."""
    if name not in _BACKENDS:
        return Others(name)
    module, _, kind = _BACKENDS[name].rpartition(".")
    # the other backends' libraries may be missing
    made: Any = getattr(import_module(module), kind)
    return made()


#: That of the process.
BACKEND: Backend = _made(keras.config.backend())
