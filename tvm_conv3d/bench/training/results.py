"""What was measured of steps of training, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm_conv3d.bench.report import NOTHING

#: What may be timed: a forward pass, loss, backward pass and step of an optimizer; or a forward pass in inference.
STEP, INFERENCE = "step", "inference"

#: Modes of this package's begin so; all others are the framework's own.
OURS = "ours"


@dataclass
class Timing:
    """One mode.

    Attributes:
        seconds: of a step or pass, one for each round.
        error: of all gradients, or the result, relative to those in float64 (2-norm).
        note: why it was not timed.
    """

    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Of the rounds; None where it was not timed."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class Measured:
    """One network by one framework.

    Attributes:
        network: of the benchmark's list.
        framework: "torch", or "keras on " one of its backends.
        kind: what was timed.
        modes: mode -> what was measured.
        note: why none was.
        available: False where the framework is not installed.
    """

    network: str
    framework: str
    kind: str
    modes: dict[str, Timing] = field(default_factory=dict)
    note: str = ""
    available: bool = True

    @classmethod
    def of(cls, content: dict[str, Any]) -> Measured:
        """Of its fields in JSON."""
        modes = {mode: Timing(**fields) for mode, fields in content.get("modes", {}).items()}
        return cls(**{**content, "modes": modes})

    def fastest(self, ours: bool) -> str | None:
        """The mode of ours, or of the framework, with the least median; None where none was timed."""
        timed = {
            mode: timing.median
            for mode, timing in self.modes.items()
            if timing.median is not None and mode.startswith(OURS) == ours
        }
        return min(timed, key=lambda mode: timed[mode] or 0.0) if timed else None

    def ratio(self) -> float | None:
        """The framework's fastest mode's time over that of ours; above 1, ours is faster."""
        theirs, mine = self.fastest(ours=False), self.fastest(ours=True)
        if theirs is None or mine is None:
            return None
        return (self.modes[theirs].median or 0.0) / (self.modes[mine].median or 1.0)

    def failures(self) -> list[str]:
        """What of ours was not timed although the framework is there, a line each."""
        if self.note:
            return [f"{self.title}: {self.note}"] if self.available else []
        return [f"{self.title}, {mode}: {t.note}" for mode, t in self.modes.items() if t.note and mode.startswith(OURS)]

    @property
    def title(self) -> str:
        return f"{self.network}, {self.kind}, {self.framework}"


def table(found: Iterable[Measured]) -> list[list[str]]:
    """A line for each network and framework."""
    rows = [["network", "what", "framework", "its fastest ms", "mode", "ours ms", "mode", "ratio", "error"]]
    for each in found:
        theirs, mine, ratio = each.fastest(ours=False), each.fastest(ours=True), each.ratio()
        error = None if mine is None else each.modes[mine].error
        rows.append(
            [
                *(each.network, each.kind, each.framework),
                *(_ms(each, theirs), theirs or NOTHING, _ms(each, mine), mine or NOTHING),
                NOTHING if ratio is None else f"{ratio:.2f}",
                NOTHING if error is None else f"{error:.1e}",
            ]
        )
    return rows


def notes(found: Iterable[Measured]) -> list[str]:
    """What was not timed, and why, a line each."""
    lines = []
    for each in found:
        lines += [f"{each.title}: {each.note}"] if each.note else []
        lines += [f"{each.title}, {mode}: {t.note}" for mode, t in each.modes.items() if t.note]
    return lines


def by_mode(found: Sequence[Measured]) -> list[list[str]]:
    """Milliseconds of every mode."""
    shown = list(dict.fromkeys(mode for each in found for mode in each.modes))
    rows = [["network", "what", "framework", *shown]]
    for each in found:
        cells = (_ms(each, mode if mode in each.modes else None) for mode in shown)
        rows.append([each.network, each.kind, each.framework, *cells])
    return rows


def _ms(found: Measured, mode: str | None) -> str:
    seconds = None if mode is None else found.modes[mode].median
    return NOTHING if seconds is None else f"{1e3 * seconds:.1f}"
