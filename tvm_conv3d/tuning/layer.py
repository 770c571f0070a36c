"""Tunes one spec from search to record."""

from __future__ import annotations

import datetime
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from tvm_conv3d.engine import records
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.engine.records import FILE_NAME, Record
from tvm_conv3d.engine.scheduling import schedule
from tvm_conv3d.reference.problem import TOLERANCE
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import thread_count
from tvm_conv3d.target.resolve import instruction_set, target_key
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.measurement_host import MeasurementHost, Trial
from tvm_conv3d.tuning.search import GAIN, Options, Search

#: How much faster than the present plan, side by side, a new one must be to take its place.
MARGIN = 0.02

#: Plans of the search that meet the present one in the final.
FINALISTS = 4

#: Called with all trials so far.
Report = Callable[[Sequence[Trial]], None]


@dataclass(frozen=True)
class Outcome:
    """What tuning one spec came to.

    Attributes:
        spec: the problem.
        plan: the fastest plan with the right numbers.
        seconds: of its call, measured in turns with the others of the final.
        default_seconds: the same of the default plan.
        trials: of the search, in the order of measuring.
        record: what this run has written, None where the present plan stays.
        interrupted: the search was stopped by hand.
        wrong: plans that were fast and whose numbers were wrong, with their relative errors.
        spent: seconds of the search and the final.
        unwritten: why the record could not be written, empty where it was.
    """

    spec: Conv3DSpec
    plan: Plan
    seconds: float
    default_seconds: float
    trials: tuple[Trial, ...]
    record: Record | None = None
    interrupted: bool = False
    wrong: dict[str, float] = field(default_factory=dict)
    spent: float = 0.0
    unwritten: str = ""

    @property
    def gain(self) -> float:
        """How many times faster than the default."""
        return self.default_seconds / self.seconds

    @property
    def gflops(self) -> float:
        """Direct-convolution floating-point operations per nanosecond."""
        return self.spec.gflop / self.seconds


def tune(
    spec: Conv3DSpec,
    host: MeasurementHost,
    options: Options,
    folder: Path | None = None,
    report: Report = lambda trials: None,
) -> Outcome:
    """Searches for a faster plan for `spec` and keeps it as a record: one turn of :class:`Tuning`."""
    return Tuning(spec, host, options, folder, report).turn(options.seconds)


class Tuning:
    """One spec's way from search to record, in one turn or several.

    Args:
        spec: the problem.
        host: where plans are measured.
        options: how long to search.
        folder: of tuning logs, in which the record is kept; None takes :func:`tvm_conv3d.engine.records.user_logs`.
        report: called after each trial.

    Raises:
        ValueError: no algorithm takes the spec, or it has no output to compute.
    """

    def __init__(
        self,
        spec: Conv3DSpec,
        host: MeasurementHost,
        options: Options,
        folder: Path | None = None,
        report: Report = lambda trials: None,
    ) -> None:
        if spec.empty:
            raise ValueError(f"There is nothing to tune: the output is empty. Received: {spec.key()}")
        default_plan(spec, host.target)
        self.spec, self._host = spec, host
        self._path = (folder or records.user_logs()) / target_key(host.target) / FILE_NAME
        self._search = Search(spec, host, options, Journal(spec, host.target), report)
        self._settled = math.inf
        self._outcome: Outcome | None = None
        self._spent = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether another turn would find nothing to try."""
        return self._search.exhausted

    def turn(self, seconds: float = math.inf) -> Outcome:
        """Goes on with the search for so long, then holds the final, unless nothing faster was found since the last.

        Ctrl-C ends the search: what was measured by then goes to the final, and a second run goes on from there. A
        second Ctrl-C ends the run at once; the trials are in the journal.

        Raises:
            RuntimeError: neither the default nor any other plan could be measured, or all numbers were wrong.
        """
        began = time.monotonic()
        interrupted = False
        try:
            self._search.run(seconds)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and not self._search.trials:
            raise KeyboardInterrupt
        trials = tuple(self._search.trials)
        if self._outcome is None or self._search.best < self._settled * (1 - GAIN):
            self._settled = self._search.best
            found = _final(self.spec, self._host, trials, self._path)
            # a record of an earlier turn that still stands was written by this run, too
            written = found.record or (self._outcome.record if self._outcome else None)
            self._outcome = replace(found, record=written)
        self._spent += time.monotonic() - began
        self._outcome = replace(self._outcome, trials=trials, interrupted=interrupted, spent=self._spent)
        return self._outcome


class _Final:
    """The best of a search, the present plan and the default, side by side.

    Attributes:
        default, present: names of these plans among :attr:`plans`.
        plans: by name.
        times: of each, measured in turns.
        wrong: plans with wrong numbers, with their relative errors.
    """

    def __init__(self, spec: Conv3DSpec, host: MeasurementHost, trials: Sequence[Trial], path: Path) -> None:
        self._spec, self._host = spec, host
        default = default_plan(spec, host.target)
        present = make_plan(spec, host.target, path if path.exists() else None)
        done = sorted((t for t in trials if t.seconds is not None), key=lambda t: t.seconds or math.inf)
        few = [default, present, *(trial.plan for trial in done[:FINALISTS])]
        self.plans = {plan.describe(): plan for plan in few}
        self.default, self.present = default.describe(), present.describe()
        self.times = self._measured(list(self.plans))
        self.wrong: dict[str, float] = {}
        self._right: set[str] = set()

    def winner(self) -> str | None:
        """The name of the plan to take; None where none has the right numbers."""
        by_time = sorted((name for name in self.plans if math.isfinite(self.times[name])), key=self.times.__getitem__)
        for name in by_time:
            if self._wins(name) and self._is_right(name):
                if self._wins_again(name):
                    return name
                break
        return next((name for name in (self._quieter(), *by_time) if self._is_right(name)), None)

    def _wins(self, name: str) -> bool:
        """Whether a plan of the search is faster than the present one and the default, beyond noise."""
        theirs = {self.present, self.default}
        return name not in theirs and all(self._faster(name, other) for other in theirs)

    def _wins_again(self, name: str) -> bool:
        """The same alone against these: the fastest of several owes its time to luck, too. The new times count."""
        self.times.update(self._measured(list(dict.fromkeys((self.default, self.present, name)))))
        return self._wins(name)

    def _faster(self, name: str, other: str) -> bool:
        return self.times[name] <= self.times[other] * (1 - MARGIN)

    def _quieter(self) -> str:
        """The default where the present record is no faster beyond noise, else the present plan."""
        return self.present if self._faster(self.present, self.default) else self.default

    def _is_right(self, name: str) -> bool:
        if name in self._right or name in self.wrong:
            return name in self._right
        error = self._host.error(self.plans[name])
        if error < TOLERANCE[self._spec.dtype]:
            self._right.add(name)
            return True
        self.wrong[name] = error
        text = f"A plan of {self._spec.key()} has wrong numbers (error {error:.1e}): {name}"
        warnings.warn(text, stacklevel=2)
        return False

    def _measured(self, names: Sequence[str]) -> dict[str, float]:
        return dict(zip(names, self._host.measure_interleaved([self.plans[name] for name in names]), strict=True))


def _final(spec: Conv3DSpec, host: MeasurementHost, trials: Sequence[Trial], path: Path) -> Outcome:
    """Measures the best of the search, the present plan and the default side by side, checks numbers, and records.

    Raises:
        RuntimeError: no plan could be measured with the right numbers.
    """
    final = _Final(spec, host, trials, path)
    name = final.winner()
    if name is None:
        raise RuntimeError(
            f"No plan of {spec.key()} could be measured with the right numbers: {len(final.wrong)} were wrong, and the "
            f"others failed: {next((trial.note for trial in trials if trial.note), 'no trial')}"
        )
    times = final.times
    outcome = Outcome(spec, final.plans[name], times[name], times[final.default], tuple(trials), wrong=final.wrong)
    return outcome if name == final.present else _recorded(outcome, host, path)


def _recorded(outcome: Outcome, host: MeasurementHost, path: Path) -> Outcome:
    plan = outcome.plan
    default_seconds = outcome.default_seconds if math.isfinite(outcome.default_seconds) else outcome.seconds
    record = Record(
        spec=plan.spec.key(),
        threads=thread_count(host.target),
        algorithm=plan.algorithm,
        variant=asdict(plan.variant),
        decisions=schedule(plan)[1].taken(),
        seconds=outcome.seconds,
        default_seconds=default_seconds,
        isa=instruction_set(host.target, plan.spec.dtype),
        cpu=host.device,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        versions={name: metadata.version(name) for name in ("apache-tvm", "tvm-conv3d")},
    )
    unwritten = ""
    try:
        # measured side by side with what is there, so that it may replace a number from a quieter day
        records.merge(path, [record], replace=True)
    except OSError as error:
        unwritten = f"{path} can't be written: {error}. Free some space and run this again"
        warnings.warn(f"{unwritten}. The record is: {record.line()}", RuntimeWarning, stacklevel=2)
    return replace(outcome, record=record, unwritten=unwritten)
