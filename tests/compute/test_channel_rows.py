"""Rows and tasks of data with the channels innermost."""

from __future__ import annotations

from itertools import product

import pytest

from tvm_conv3d.compute.shared.channel_rows import LANES, ROOM, rows_of


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 33, 320, 5001])
def test_rows_hold_whole_positions_and_tasks_all_rows(channels: int) -> None:
    for samples, positions in product((1, 3, 1000), (1, 2, 27, 100_000)):
        period, chunk, tasks = rows_of(samples, positions, channels)
        elements = positions * channels
        assert period % channels == 0 and chunk % period == 0
        # vectors may be broken in a sample's only row
        assert period % LANES == 0 or period == elements
        assert (tasks - 1) * chunk < elements <= tasks * chunk
        assert samples * tasks <= max(256, samples)


def test_sums_take_less_memory_than_the_data() -> None:
    for channels, positions in product((1, 8, 33, 320, 5001), (27, 1000, 30_000)):
        period, _, tasks = rows_of(1, positions, channels)
        # beside elements of four bytes; or a row of each task
        assert ROOM * 8 * period * (tasks - 1) <= 4 * positions * channels
