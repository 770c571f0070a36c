"""The decisions of a design space: sampled while tuning, fixed when a plan is built, always under the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm.s_tir import Schedule

LoopRV = Any  # TVM's handles of loops and sampled values


class Decisions:
    """Draws the named decisions of one schedule.

    A design space must make the same draws in the same order whatever their outcome, as MetaSchedule replays a trace
    of instructions, not this Python code. What changes the instructions is a variant's business.

    Args:
        schedule: the schedule to draw in.
        fixed: name -> value of each decision; a name that is missing takes its default. None draws at random.

    Attributes:
        names: of the decisions drawn so far.
        points: how many outcomes these have together.
    """

    def __init__(self, schedule: Schedule, fixed: Mapping[str, int] | None) -> None:
        self._schedule = schedule
        self._fixed = fixed
        self.names: list[str] = []
        self.points = 1

    def tile(self, name: str, loop: LoopRV, default: int, limit: int = 64) -> list[LoopRV]:
        """Splits `loop` into outer and inner; the inner extent is the decision and divides the loop's.

        Args:
            name: of the decision.
            loop: the loop to split.
            default: requested inner extent; the largest divisor not above it is taken.
            limit: largest inner extent that is sampled.
        """
        extent = int(self._schedule.get(loop).extent)
        decision = None
        if self._fixed is not None:
            inner = largest_divisor(extent, min(self._fixed.get(name, default), limit))
            decision = [extent // inner, inner]
        self.names.append(name)
        self.points *= sum(extent % inner == 0 for inner in range(1, min(extent, limit) + 1))
        factors = self._schedule.sample_perfect_tile(loop, n=2, max_innermost_factor=limit, decision=decision)
        return list(self._schedule.split(loop, factors, preserve_unit_iters=True))

    def choice(self, name: str, candidates: Sequence[int], default: int) -> LoopRV:
        """One of `candidates`, as a sampled value that other primitives take."""
        decision = None
        if self._fixed is not None:
            value = self._fixed.get(name, default)
            decision = list(candidates).index(value if value in candidates else default)
        self.names.append(name)
        self.points *= len(candidates)
        probabilities = [1 / len(candidates)] * len(candidates)
        return self._schedule.sample_categorical(list(candidates), probabilities, decision=decision)

    def taken(self) -> dict[str, int]:
        """The decisions by name, read from the schedule's trace."""
        trace = self._schedule.trace
        if trace is None:
            raise ValueError("The schedule keeps no trace.")
        return read_trace(trace, self.names)


def read_trace(trace: Any, names: Sequence[str]) -> dict[str, int]:
    """The decisions in a MetaSchedule trace, given their names in the order of drawing."""
    values = []
    for instruction in trace.insts:
        if instruction not in trace.decisions:
            continue
        decision = trace.decisions[instruction]
        if instruction.kind.name == "SamplePerfectTile":
            values.append(int(decision[-1]))
        else:
            values.append(int(instruction.attrs[0][int(decision)]))
    if len(values) != len(names):
        raise ValueError(f"The trace holds {len(values)} decisions where the design space has {len(names)}: {names}")
    return dict(zip(names, values, strict=True))


def divisors(number: int) -> list[int]:
    """All divisors of `number`, the least first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def largest_divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` that is not above `limit`."""
    return max(d for d in divisors(extent) if d <= max(1, limit))
