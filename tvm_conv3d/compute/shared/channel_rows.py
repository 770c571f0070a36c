"""How data with the channels innermost are read in vectors, whatever the number of channels, and cut into tasks."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

#: Elements of a vector, or of the few that one takes where vectors are shorter.
LANES = 16

#: Elements that a row has at least, and a task, and tasks of all samples together, at most.
_ROW, _TASK, _MAX_TASKS = 256, 16384, 128

#: Rows that are added up at once; a task has some such blocks, but for the last one.
TOGETHER = 32

#: Numbers of eight bytes that a task keeps for each element of a row while it adds up.
ROOM = 6


class Rows(NamedTuple):
    """How each sample, (positions, channels), is cut.

    Attributes:
        period: elements of a row: positions side by side that fill whole vectors, so that what belongs to channels
            repeats from row to row; one that is shorter is the sample's only one.
        chunk: elements of a task, whole rows; the last one has what is left.
        tasks: of a sample; their number depends on sizes alone, and so do the results.
    """

    period: int
    chunk: int
    tasks: int


@functools.lru_cache(4096)
def rows_of(samples: int, positions: int, channels: int) -> Rows:
    """Rows and tasks of data, (samples, positions, channels), none of which is 0."""
    least = math.lcm(channels, LANES)
    elements = positions * channels
    period = min(elements, least * max(1, _ROW // least))
    rows = -(-elements // period)
    together = max(-(-_TASK // period), -(-rows // max(1, _MAX_TASKS // samples)))
    together = -(-together // TOGETHER) * TOGETHER
    return Rows(period, together * period, -(-rows // together))
