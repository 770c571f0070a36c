"""Every combination of the layer's arguments that changes the mathematics, on the CPU against the oracle."""

from __future__ import annotations

from typing import Any

import pytest

from keras_cases import grid, spec_of
from problems import assert_right


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_grid(padding: str, data_format: str, every: int) -> None:
    wanted: dict[str, Any] = {"padding": padding, "data_format": data_format}
    cases = [arguments for arguments in grid() if arguments.items() >= wanted.items()]
    assert len(cases) == 39
    for arguments in cases[::every]:
        assert_right(spec_of(arguments))
