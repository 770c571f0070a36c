"""Tables that forget what was not asked for in a long time."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A table of at most `size` entries, in two generations; several threads may use it.

    New entries fill the young generation; when it is full, it becomes the old one, whose entries are forgotten unless
    somebody asks for them meanwhile. So the last `size // 2` that were asked for are there, and a hit costs a look-up.

    Args:
        size: most entries, at least 2.
    """

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self.clear()

    def clear(self) -> None:
        """Forgets all."""
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value of `key`; None where there is none or it was forgotten."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keeps `value` under `key`."""
        if len(self._young) >= self._half:
            self._young, self._old = {}, self._young
        self._young[key] = value

    def values(self) -> list[V]:
        """All that is kept."""
        return list({**self._old, **self._young}.values())

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
