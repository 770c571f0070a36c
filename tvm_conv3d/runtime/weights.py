"""The weights of a call, and what is kept of them once they are packed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from tvm_conv3d.support.lru import Recent

F = TypeVar("F")


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


class Weights(NamedTuple):
    """The weights of a call.

    Attributes:
        kernel: (depth, height, width, channels / groups, filters).
        bias: (filters,), or None.
        version: changes whenever these do.
        structured: whether the kernel's values carry exact meaning (:mod:`tvm_conv3d.runtime.structure`).
        packed: table of their packed forms; None for that of the executor, which has one version of each form.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    version: Hashable
    structured: bool = False
    packed: Recent[Hashable, Packed] | None = None
