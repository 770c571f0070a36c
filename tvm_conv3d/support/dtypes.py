"""Element types by name, as NumPy's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

_HALVES = ("float16", "bfloat16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a Keras dtype name; bfloat16 is `ml_dtypes`'s."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def widen(x: np.ndarray) -> np.ndarray:
    """`x` in a type with at least float32's precision, for arithmetic whose result is rounded once."""
    return x.astype(np.float32) if x.dtype.name in _HALVES else x
