"""Seeds of random initializers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tvm_conv3d.layer.naming import automatic_name
from tvm_conv3d.layer.objects.arrays import to_numpy
from tvm_conv3d.layer.objects.registry import Family, by_names
from tvm_conv3d.support.locks import ForkSafeLock

_LARGEST_DEFAULT = 10**9


def default_seed() -> int:
    """A seed from Python's own generator, so that `random.seed` makes unseeded initializers repeatable."""
    return random.randint(1, _LARGEST_DEFAULT)


class SeedGenerator:
    """A sequence of seeds: an initializer that holds one draws other values at every call.

    Args:
        seed: start of the sequence; None takes a random one.
        name: kept for the config.
    """

    def __init__(self, seed: int | None = None, name: str | None = None) -> None:
        if seed is not None and not isinstance(seed, int):
            raise ValueError(f"Argument `seed` must be an integer. Received: seed={seed}")
        self.name = automatic_name("SeedGenerator") if name is None else name
        self._config_seed = seed
        self._seed = default_seed() if seed is None else seed
        self._drawn = 0
        self._lock = ForkSafeLock()

    def next(self) -> np.ndarray:
        """The seed and how many were drawn before."""
        with self._lock:
            drawn = self._drawn
            self._drawn += 1
        return np.array([self._seed, drawn], dtype=np.int64)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self._config_seed, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SeedGenerator:
        return cls(**config)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = ForkSafeLock()


_FAMILY = Family("seed generator", "keras.random", by_names([SeedGenerator]))


def get(seed: Any) -> Any:
    """An int or a seed generator, ours or Keras's.

    Raises:
        ValueError: it is neither.
    """
    if seed is None:
        return default_seed()
    if isinstance(seed, dict):
        seed = _FAMILY.deserialize(seed)
    if isinstance(seed, (int, SeedGenerator)) or (type(seed).__name__ == "SeedGenerator" and hasattr(seed, "next")):
        return seed
    raise ValueError(
        f"`seed` argument should be an instance of `keras.random.SeedGenerator()` or an integer. Received: seed={seed}"
    )


def serialize(seed: Any) -> Any:
    """A seed as Keras writes it into an initializer's config."""
    return seed if seed is None or isinstance(seed, (int, dict)) else _FAMILY.serialize(seed)


def generator(seed: Any) -> np.random.Generator:
    """NumPy's generator for an int, or for the next draw of a seed generator."""
    numbers = [seed] if isinstance(seed, int) else to_numpy(seed.next()).ravel().tolist()
    # NumPy takes no negative seed, Keras does.
    return np.random.default_rng([int(number) & (2**64 - 1) for number in numbers])
