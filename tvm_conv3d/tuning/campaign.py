"""A run over many layers: whose turn it is, and for how long.

Where time is short, the first half of it is shared out evenly, so that no layer goes without; the rest goes in short
turns to the layer that has gained most a second lately. A turn without a gain halves what a layer may hope for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tvm_conv3d.tuning.layer import Outcome
from tvm_conv3d.tuning.measurement_host import Trial
from tvm_conv3d.tuning.search import GAIN
from tvm_conv3d.tuning.workers import NoWorkerError

#: Share of the time that is shared out evenly.
FIRST_HALF = 0.5
#: Length of a later turn, as a share of an even one.
LATER = 0.5
#: Seconds below which a turn is not worth its final.
MIN_SECONDS = 1.0


class Turns(Protocol):
    """What a layer's tuning is to a campaign: :class:`tvm_conv3d.tuning.layer.Tuning`."""

    @property
    def exhausted(self) -> bool:
        """Whether another turn would find nothing to try."""

    def turn(self, seconds: float) -> Outcome:
        """Searches for so long; the final comes on top."""


T = TypeVar("T")


@dataclass
class Entry(Generic[T]):
    """A layer in the campaign.

    Attributes:
        task: what the caller knows it by.
        tuning: made at its first turn; None after a failure.
        outcome: of the last turn.
        hope: gain (as a logarithm) for each second that it may bring.
    """

    task: T
    tuning: Turns | None = None
    outcome: Outcome | None = None
    hope: float = 0.0

    @property
    def open(self) -> bool:
        """Whether it may have another turn."""
        return self.tuning is not None and not self.tuning.exhausted


@dataclass
class Campaign(Generic[T]):
    """Takes turns over layers until the time is over or nothing is left to try.

    Args:
        tasks: the layers, in the order of their first turns.
        start: makes the tuning of one; may raise ValueError.
        budget: seconds in all; infinite where only trials limit the search, then each layer has one turn.
        begin, end: called before and after each turn; `end` with an outcome or the text of an error.

    Attributes:
        interrupted: somebody pressed Ctrl-C, or nothing can be measured any more.
        failed: some layer could not be tuned.
    """

    tasks: Sequence[T]
    start: Callable[[T], Turns]
    budget: float
    begin: Callable[[T], None]
    end: Callable[[T, Outcome | None, str], None]
    interrupted: bool = False
    failed: bool = False
    _entries: list[Entry[T]] = field(default_factory=list)
    _overheads: list[float] = field(default_factory=list)

    def run(self) -> list[tuple[T, Outcome]]:
        """The last outcome of each layer that was tuned, in the layers' order."""
        self._entries = [Entry(task) for task in self.tasks]
        began = time.monotonic()
        end, half = began + self.budget, began + self.budget * (FIRST_HALF if len(self.tasks) > 1 else 1.0)
        for number, entry in enumerate(self._entries):
            self._turn(entry, self._share(half, len(self._entries) - number))
            if self.interrupted:
                return self._done()
        later = max(MIN_SECONDS, LATER * (half - began) / max(1, len(self._entries)))
        while time.monotonic() + MIN_SECONDS < end and math.isfinite(end):
            entries = [entry for entry in self._entries if entry.open]
            if not entries:
                break
            left = end - time.monotonic() - self._overhead
            best = max(entries, key=lambda entry: entry.hope)
            self._turn(best, max(MIN_SECONDS, left if len(entries) == 1 else min(later, left)))
            if self.interrupted:
                break
        return self._done()

    @property
    def _overhead(self) -> float:
        """Seconds that a turn takes beyond its search: its final."""
        return statistics.fmean(self._overheads) if self._overheads else 0.0

    def _share(self, end: float, layers: int) -> float:
        """Seconds of one of so many layers until `end`; the least there is lets the default be measured."""
        return max(1e-3, (end - time.monotonic()) / layers - self._overhead)

    def _turn(self, entry: Entry[T], seconds: float) -> None:
        self.begin(entry.task)
        began = time.monotonic()
        before = entry.outcome
        try:
            if entry.tuning is None:
                entry.tuning = self.start(entry.task)
            entry.outcome = entry.tuning.turn(seconds)
        except KeyboardInterrupt:
            self.interrupted = True
            return
        except (ValueError, RuntimeError) as error:
            self.failed, entry.tuning = True, None
            # without processes or device the others would only fail, too
            self.interrupted = isinstance(error, NoWorkerError)
            self.end(entry.task, None, str(error))
            return
        self.interrupted = entry.outcome.interrupted
        spent = time.monotonic() - began
        if math.isfinite(self.budget) and not entry.tuning.exhausted:
            self._overheads.append(max(0.0, spent - seconds))
        gain = _progress(before, entry.outcome)
        # what was gained before a turn without a gain is history
        entry.hope = gain / spent if gain >= GAIN else min(entry.hope, GAIN / spent) / 2
        self.end(entry.task, entry.outcome, "")

    def _done(self) -> list[tuple[T, Outcome]]:
        return [(entry.task, entry.outcome) for entry in self._entries if entry.outcome is not None]


def _progress(before: Outcome | None, after: Outcome) -> float:
    """How much faster the best trial became in a turn, as a logarithm; of a first turn its later half counts.

    A first turn that brought nothing may hope for as much as noise hides.
    """
    earlier = before.trials if before else after.trials[: (1 + len(after.trials)) // 2]
    gain = math.log(_best(earlier) / _best(after.trials)) if math.isfinite(_best(earlier)) else 0.0
    return gain if before else max(GAIN, gain)


def _best(trials: Sequence[Trial]) -> float:
    return min((trial.seconds for trial in trials if trial.seconds is not None), default=math.inf)
