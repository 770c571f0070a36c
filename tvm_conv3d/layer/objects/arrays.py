"""Whatever a user's callable returns, as a NumPy array."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.runtime import interchange


def to_numpy(value: Any) -> np.ndarray:
    """`value` as an array: arrays as they are, tensors of any framework without their gradient, the rest by NumPy."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        return interchange.wrap(value).numpy()
    except TypeError:
        return np.asarray(value)
