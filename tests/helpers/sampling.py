"""Grids of which a sample runs always, and all with the deep tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: every so many-th case as it is, the others with the mark `deep`.

    Args:
        cases: tuples of values, or values.
        every: how many cases one is taken of. Over a product of axes it had better share no divisor with an axis'
            length, so that the sample meets all values of all axes.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if i % every == 0 else pytest.mark.deep)
        for i, case in enumerate(cases)
    ]
