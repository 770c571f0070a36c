"""What a mode of a network is measured by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Way(NamedTuple):
    """A network in one mode.

    Attributes:
        outcome: called once, first: all gradients at the first weights, or the result in inference.
        run: what is timed.
    """

    outcome: Callable[[], list[np.ndarray]]
    run: Callable[[], Any]


class Network(NamedTuple):
    """A network with its weights and data.

    Attributes:
        way: of a mode.
        exact: what a way's `outcome` gives, computed in float64.
    """

    way: Callable[[str], Way]
    exact: Callable[[], list[np.ndarray]]
