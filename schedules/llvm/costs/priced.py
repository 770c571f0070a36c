"""A variant beside what it is estimated to cost: what the rules that choose among variants compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Variant = TypeVar("Variant")


@dataclass(frozen=True)
class Priced(Generic[Variant]):
    """A variant of an algorithm and its estimated cycles on each core."""

    variant: Variant
    cycles: float
