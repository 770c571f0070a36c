"""What the layers of a network take of time and memory together, where each could take less of one for the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """What a layer takes: time, in any unit, and bytes."""

    cost: float
    nbytes: int


class _Step(NamedTuple):
    """From one option of a layer to a later one: what it costs for each byte that it saves, and both in all."""

    price: float
    layer: int
    option: int
    lost: float
    saved: int


def choose(layers: Sequence[Sequence[Option]], share: float, enough: int, rate: float = math.inf) -> list[int]:
    """The number of the option that each layer takes, so that few bytes are taken and little time is lost.

    Steps that save the most bytes for their time are taken first, along each layer's convex hull, as Lagrangian
    relaxation takes them.

    Args:
        layers: the options of each, at least one, the fastest first, each next one of fewer bytes and no less time.
        share: of the time that all layers' first options take together, what may be lost.
        enough: bytes that all layers together may take: nothing is lost for fewer.
        rate: the part of the time that may be lost for as large a part of the bytes.
    """
    chosen = [0] * len(layers)
    time = sum(options[0].cost for options in layers)
    total = sum(options[0].nbytes for options in layers)
    left, dearest = share * time, rate * time / max(1, total)
    spent: set[int] = set()
    steps = (step for number, options in enumerate(layers) for step in _steps(number, options))
    # stable: of one layer in their order, as their prices rise
    for step in sorted(steps, key=lambda step: step.price):
        if total <= enough or step.price > dearest:
            break
        if step.lost > left:
            spent.add(step.layer)
        if step.layer not in spent:
            chosen[step.layer] = step.option
            left -= step.lost
            total -= step.saved
    return chosen


def _steps(layer: int, options: Sequence[Option]) -> Iterator[_Step]:
    """Steps from the first option to the last along the convex hull, the cheapest first."""
    at = 0
    while at < len(options) - 1:
        here = options[at]
        best: _Step | None = None
        for number, there in enumerate(options[at + 1 :], at + 1):
            lost, saved = there.cost - here.cost, here.nbytes - there.nbytes
            price = lost / saved if saved > 0 else math.inf
            # of equals the longest
            if best is None or price <= best.price:
                best = _Step(price, layer, number, lost, saved)
        assert best is not None
        yield best
        at = best.option
