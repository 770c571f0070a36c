"""The base class of initializers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Initializer:
    """A function of a shape and a dtype that is rebuilt from its config."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> np.ndarray:
        """An array of `shape` and `dtype`.

        Args:
            shape: the variable's shape.
            dtype: name or dtype; None is float32.
        """
        raise NotImplementedError("Initializer subclasses must implement the `__call__()` method.")

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Initializer:
        return cls(**config)

    def clone(self) -> Initializer:
        return self.from_config(self.get_config())
