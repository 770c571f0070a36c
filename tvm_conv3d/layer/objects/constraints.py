"""Keras's constraints: projections of a weight, applied after training steps and never in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_conv3d.layer.objects.registry import Family, by_names
from tvm_conv3d.support.dtypes import widen

#: Keras's `epsilon()`, which keeps a zero norm from dividing.
_EPSILON = 1e-7


class Constraint:
    """A projection that is rebuilt from its config; this one changes nothing."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Constraint:
        return cls(**config)


class NonNeg(Constraint):
    """Negative weights become zero."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return np.maximum(w, w.dtype.type(0))


class _Norm(Constraint):
    """Weights scaled so that their norms along `axis` become what `_wanted` says."""

    axis: Any

    def __call__(self, w: np.ndarray) -> np.ndarray:
        wide = widen(w)
        axis = tuple(self.axis) if isinstance(self.axis, Sequence) else self.axis
        norms = np.sqrt(np.sum(np.square(wide), axis=axis, keepdims=True))
        return (wide * (self._wanted(norms) / (_EPSILON + norms))).astype(w.dtype)

    def _wanted(self, norms: np.ndarray) -> Any:
        raise NotImplementedError


class MaxNorm(_Norm):
    """Norms of at most `max_value`.

    Args:
        max_value: largest norm.
        axis: axis or axes of one weight vector; `[0, 1, 2, 3]` are those of one filter of this layer.
    """

    def __init__(self, max_value: float = 2, axis: Any = 0) -> None:
        self.max_value = max_value
        self.axis = axis

    def _wanted(self, norms: np.ndarray) -> Any:
        return np.clip(norms, 0, self.max_value)

    def get_config(self) -> dict[str, Any]:
        return {"max_value": self.max_value, "axis": self.axis}


class UnitNorm(_Norm):
    """Norms of one.

    Args:
        axis: see :class:`MaxNorm`.
    """

    def __init__(self, axis: Any = 0) -> None:
        self.axis = axis

    def _wanted(self, norms: np.ndarray) -> Any:
        return 1

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis}


class MinMaxNorm(_Norm):
    """Norms between two bounds, approached at a rate.

    Args:
        min_value: smallest norm.
        max_value: largest norm.
        rate: 1 enforces the bounds, less moves weights toward them.
        axis: see :class:`MaxNorm`.
    """

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Any = 0) -> None:
        self.min_value = min_value
        self.max_value = max_value
        self.rate = rate
        self.axis = axis

    def _wanted(self, norms: np.ndarray) -> Any:
        return self.rate * np.clip(norms, self.min_value, self.max_value) + (1 - self.rate) * norms

    def get_config(self) -> dict[str, Any]:
        return {"min_value": self.min_value, "max_value": self.max_value, "rate": self.rate, "axis": self.axis}


FAMILY = Family("constraint", "keras.constraints", by_names([Constraint, MaxNorm, NonNeg, UnitNorm, MinMaxNorm]))
get = FAMILY.get
serialize = FAMILY.serialize
deserialize = FAMILY.deserialize
