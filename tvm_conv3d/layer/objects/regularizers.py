"""Keras's regularizers: penalties on an array, as scalars of its dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tvm_conv3d.layer.objects.registry import Family, by_names
from tvm_conv3d.support.dtypes import widen

_DEFAULT_FACTOR = 0.01
_TINY = 1e-12


class Regularizer:
    """A penalty that is rebuilt from its config; this one is zero."""

    def __call__(self, x: np.ndarray) -> Any:
        return 0.0

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(f"{self} does not implement get_config()")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Regularizer:
        return cls(**config)


class L1L2(Regularizer):
    """`l1 * sum(|x|) + l2 * sum(x ** 2)`.

    Args:
        l1: factor of the absolute values.
        l2: factor of the squares.
    """

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = _factor(0.0 if l1 is None else l1, "l1")
        self.l2 = _factor(0.0 if l2 is None else l2, "l2")

    def __call__(self, x: np.ndarray) -> Any:
        penalty = 0.0
        if self.l1:
            penalty += self.l1 * _sum(np.abs(widen(x)))
        if self.l2:
            penalty += self.l2 * _sum(np.square(widen(x)))
        return x.dtype.type(penalty)

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}


class L1(Regularizer):
    """`l1 * sum(|x|)`.

    Args:
        l1: factor.
    """

    def __init__(self, l1: float | None = _DEFAULT_FACTOR) -> None:
        self.l1 = _factor(_DEFAULT_FACTOR if l1 is None else l1, "l1")

    def __call__(self, x: np.ndarray) -> Any:
        return L1L2(l1=self.l1)(x)

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1}


class L2(Regularizer):
    """`l2 * sum(x ** 2)`.

    Args:
        l2: factor.
    """

    def __init__(self, l2: float | None = _DEFAULT_FACTOR) -> None:
        self.l2 = _factor(_DEFAULT_FACTOR if l2 is None else l2, "l2")

    def __call__(self, x: np.ndarray) -> Any:
        return L1L2(l2=self.l2)(x)

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


class OrthogonalRegularizer(Regularizer):
    """`factor` times the mean |cosine| between different rows or columns of a matrix.

    A kernel of this layer is no matrix, so it is refused as Keras does.

    Args:
        factor: factor.
        mode: `rows` or `columns`.
    """

    def __init__(self, factor: float = _DEFAULT_FACTOR, mode: str = "rows") -> None:
        self.factor = _factor(factor, "factor")
        if mode not in ("rows", "columns"):
            raise ValueError(
                'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. ' + f"Received: mode={mode}"
            )
        self.mode = mode

    def __call__(self, x: np.ndarray) -> Any:
        if len(x.shape) != 2:
            raise ValueError(
                f"Inputs to OrthogonalRegularizer must have rank 2. Received: inputs.shape={tuple(x.shape)}"
            )
        vectors = widen(x) if self.mode == "rows" else widen(x).T
        vectors = vectors / np.sqrt(np.maximum(np.square(vectors).sum(axis=1, keepdims=True), _TINY))
        cosines = np.abs(vectors @ vectors.T)
        np.fill_diagonal(cosines, 0)
        pairs = len(vectors) * (len(vectors) - 1) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return x.dtype.type(self.factor * 0.5 * np.divide(_sum(cosines), pairs))

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor, "mode": self.mode}


class _Regularizers(Family):
    """Regularizers; the name `l1_l2` makes one with other defaults than its class has."""

    def get(self, identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        if isinstance(identifier, str) and identifier == "l1_l2":
            return L1L2(_DEFAULT_FACTOR, _DEFAULT_FACTOR)
        return super().get(identifier, custom_objects)


FAMILY = _Regularizers(
    "regularizer", "keras.regularizers", by_names([Regularizer, L1, L2, L1L2, OrthogonalRegularizer])
)
get = FAMILY.get
serialize = FAMILY.serialize
deserialize = FAMILY.deserialize


def _sum(x: np.ndarray) -> float:
    return float(np.sum(x, dtype=np.float64))


def _factor(value: Any, name: str) -> float:
    if not isinstance(value, (float, int)) or not math.isfinite(value) or value < 0:
        # No space after the first sentence in Keras's message either.
        raise ValueError(f"Invalid value for argument {name}: expected a non-negative float.Received: {name}={value}")
    return float(value)
