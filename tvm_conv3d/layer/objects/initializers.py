"""Keras's initializers: functions of a shape and a dtype that make a variable's first value.

Seeded ones repeat themselves; they draw from Keras's distributions, not Keras's very numbers, which differ between its
backends too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvm_conv3d.layer.dtype_policy import standard_dtype
from tvm_conv3d.layer.objects.arrays import to_numpy
from tvm_conv3d.layer.objects.initializer import Initializer
from tvm_conv3d.layer.objects.random_initializers import (
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LecunNormal,
    LecunUniform,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
)
from tvm_conv3d.layer.objects.registry import Family, by_names
from tvm_conv3d.support.dtypes import numpy_dtype


class Zeros(Initializer):
    """All zeros."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.zeros(tuple(shape), numpy_dtype(standard_dtype(dtype)))


class Ones(Initializer):
    """All ones."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        return np.ones(tuple(shape), numpy_dtype(standard_dtype(dtype)))


class Constant(Initializer):
    """The same value everywhere.

    Args:
        value: a number.
    """

    def __init__(self, value: Any = 0.0) -> None:
        self.value = value

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        value = to_numpy(self.value).astype(numpy_dtype(standard_dtype(dtype)))
        return np.broadcast_to(value, tuple(shape)).copy()

    def get_config(self) -> dict[str, Any]:
        value = self.value
        return {"value": value if isinstance(value, (bool, int, float)) else _array_config(to_numpy(value))}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Constant:
        # Keras fails here on the bare name "constant", whose value its own constructor gives as 0.
        value = config.get("value", 0.0)
        return cls(_array(value) if isinstance(value, dict) else value)


class Identity(Initializer):
    """The identity matrix; no kernel of this layer is a matrix.

    Args:
        gain: factor.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        if len(shape) != 2:
            raise ValueError(
                "Identity matrix initializer can only be used for 2D matrices. "
                f"Received: shape={shape} of rank {len(shape)}."
            )
        return (self.gain * np.eye(shape[0], shape[1])).astype(numpy_dtype(standard_dtype(dtype)))

    def get_config(self) -> dict[str, Any]:
        return {"gain": self.gain}


class STFT(Initializer):
    """Keras's kernels of a short-time Fourier transform, which fit a 1-D convolution only.

    It is here so that configs naming it are read; making a kernel of it is refused, as Keras does for 3-D kernels.

    Args:
        side: `real` or `imag`.
        window: name or values of a window, or None.
        scaling: `density`, `spectrum` or None.
        periodic: whether the window is periodic.
    """

    def __init__(
        self, side: str = "real", window: Any = "hann", scaling: str | None = "density", periodic: bool = False
    ) -> None:
        if side not in ("real", "imag"):
            raise ValueError(f"side should be 'real' or 'imag', not {side}")
        if scaling not in (None, "density", "spectrum"):
            raise ValueError(
                f"Scaling is invalid, it must be `None`, 'density' or 'spectrum'. Received scaling={scaling}"
            )
        self.side = side
        self.window = window
        self.scaling = scaling
        self.periodic = periodic

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        raise ValueError(
            f"STFT initializer can only be used for kernels of a 1-D convolution. "
            f"Received: shape={shape} of rank {len(shape)}."
        )

    def get_config(self) -> dict[str, Any]:
        return {"side": self.side, "window": self.window, "periodic": self.periodic, "scaling": self.scaling}


class Values(Initializer):
    """The values of a given array.

    Args:
        value: array or tensor.
    """

    def __init__(self, value: Any) -> None:
        self.value = to_numpy(value)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        if tuple(shape) != self.value.shape:
            raise ValueError(
                f"Expected `shape` to be {self.value.shape} for direct tensor as initializer. Received shape={shape}"
            )
        return self.value.astype(numpy_dtype(standard_dtype(dtype)))

    def get_config(self) -> dict[str, Any]:
        return _array_config(self.value)["config"]


_NAMES: dict[str, Any] = by_names(
    [
        Initializer,
        Zeros,
        Ones,
        Constant,
        Identity,
        STFT,
        RandomNormal,
        RandomUniform,
        TruncatedNormal,
        VarianceScaling,
        GlorotNormal,
        GlorotUniform,
        HeNormal,
        HeUniform,
        LecunNormal,
        LecunUniform,
        Orthogonal,
    ]
) | {
    "zero": Zeros,
    "one": Ones,
    "normal": RandomNormal,
    "uniform": RandomUniform,
    "IdentityInitializer": Identity,
    "OrthogonalInitializer": Orthogonal,
    "STFTInitializer": STFT,
}


class _Initializers(Family):
    """Initializers, which may be given as arrays too."""

    def get(self, identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        if not callable(identifier) and hasattr(identifier, "shape") and hasattr(identifier, "dtype"):
            return Values(identifier)
        return super().get(identifier, custom_objects)

    def deserialize(self, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        if config.get("class_name") == "__numpy__":
            return Values(_array(config))
        return super().deserialize(config, custom_objects)

    def serialize(self, obj: Any) -> Any:
        return _array_config(obj.value) if isinstance(obj, Values) else super().serialize(obj)


FAMILY = _Initializers("initializer", "keras.initializers", _NAMES)
get = FAMILY.get
serialize = FAMILY.serialize
deserialize = FAMILY.deserialize


def _array_config(value: np.ndarray) -> dict[str, Any]:
    """An array as Keras serializes one."""
    wide = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    return {"class_name": "__numpy__", "config": {"value": wide.tolist(), "dtype": value.dtype.name}}


def _array(config: dict[str, Any]) -> np.ndarray:
    inner = config["config"]
    return np.array(inner["value"], dtype=numpy_dtype(inner["dtype"]))
