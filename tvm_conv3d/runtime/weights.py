"""The weights of a call, and what is kept of them once they are packed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tvm_conv3d.support.lru import Recent

F = TypeVar("F")

#: Of kernel and bias; None for no bias.
Shapes = tuple[tuple[int, ...], tuple[int, ...] | None]


@dataclass(frozen=True)
class Packed(Generic[F]):
    """Weights in a plan's layout.

    Attributes:
        version: of the weights.
        form: as the backend's compiled functions take them.
        nbytes: memory that they take.
    """

    version: Hashable
    form: F
    nbytes: int


class Weights:
    """The weights of a call.

    Attributes:
        shapes: those of kernel and bias; None for no bias.
        kernel: (depth, height, width, channels / groups, filters).
        bias: (filters,), or None.
        version: changes whenever these do.
        structured: whether the kernel's values carry exact meaning (:mod:`tvm_conv3d.runtime.structure`).
        packed: table of their packed forms; None for that of the executor, which has one version of each form.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        version: Hashable,
        structured: bool = False,
        packed: Recent[Hashable, Packed] | None = None,
    ) -> None:
        self._values = kernel, bias
        self.shapes: Shapes = kernel.shape, None if bias is None else bias.shape
        self.version = version
        self.structured = structured
        self.packed = packed

    @property
    def kernel(self) -> np.ndarray:
        return self._values[0]

    @property
    def bias(self) -> np.ndarray | None:
        return self._values[1]

    def at_hand(self) -> Weights:
        """Weights whose values nobody else can change until they are packed."""
        return self
