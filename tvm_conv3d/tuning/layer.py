"""Tunes one spec from search to record."""

from __future__ import annotations

import datetime
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from tvm_conv3d import records
from tvm_conv3d.bench.problem import TOLERANCE
from tvm_conv3d.plan import Plan, default_plan, make_plan
from tvm_conv3d.records import FILE_NAME, Record
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.targets import instruction_set, target_key, thread_count
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.lab import Lab, Trial
from tvm_conv3d.tuning.search import Options, Search

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
        record: what was written, None where the present plan stays.
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
    spec: Conv3DSpec, lab: Lab, options: Options, folder: Path | None = None, report: Report = lambda trials: None
) -> Outcome:
    """Searches for a faster plan for `spec` and keeps it as a record.

    Ctrl-C ends the search: what was measured by then goes to the final, and a second run goes on from there. A second
    Ctrl-C ends the run at once; the trials are in the journal.

    Args:
        spec: the problem.
        lab: where plans are measured.
        options: how long to search.
        folder: of tuning logs, in which the record is kept; None takes :func:`tvm_conv3d.records.user_logs`.
        report: called after each batch.

    Raises:
        ValueError: no algorithm takes the spec, or it has no output to compute.
        RuntimeError: neither the default nor any other plan could be measured, or all numbers were wrong.
    """
    if spec.empty:
        raise ValueError(f"There is nothing to tune: the output is empty. Received: {spec.key()}")
    began = time.monotonic()
    path = (folder or records.user_logs()) / target_key(lab.target) / FILE_NAME
    search = Search(spec, lab, options, Journal(spec, lab.target), report)
    interrupted = False
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted = True
    if interrupted and not search.trials:
        raise KeyboardInterrupt
    outcome = _final(spec, lab, search.trials, path)
    return Outcome(
        **{**vars(outcome), "interrupted": interrupted, "spent": time.monotonic() - began},
    )


def _final(spec: Conv3DSpec, lab: Lab, trials: Sequence[Trial], path: Path) -> Outcome:
    """Measures the best of the search, the present plan and the default side by side, checks numbers, and records."""
    default = default_plan(spec, lab.target)
    present = make_plan(spec, lab.target, path if path.exists() else None)
    done = sorted((t for t in trials if t.seconds is not None), key=lambda t: t.seconds or math.inf)
    finalists = {plan.describe(): plan for plan in [default, present, *(trial.plan for trial in done[:FINALISTS])]}
    times = dict(zip(finalists, lab.contest(list(finalists.values())), strict=True))
    wrong: dict[str, float] = {}
    for name in sorted(finalists, key=lambda name: times[name]):
        if math.isinf(times[name]):
            break
        if times[name] > times[present.describe()] * (1 - MARGIN) and present.describe() not in wrong:
            # nothing is faster beyond noise; the default goes before a record that is no faster
            name = _quieter(default.describe(), present.describe(), times, wrong)
        if name in wrong:
            continue
        error = lab.error(finalists[name])
        if not error < TOLERANCE[spec.dtype]:
            wrong[name] = error
            warnings.warn(f"A plan of {spec.key()} has wrong numbers (error {error:.1e}): {name}", stacklevel=2)
            continue
        outcome = Outcome(spec, finalists[name], times[name], times[default.describe()], tuple(trials), wrong=wrong)
        return outcome if name == present.describe() else _recorded(outcome, lab, path)
    raise RuntimeError(
        f"No plan of {spec.key()} could be measured with the right numbers: {len(wrong)} were wrong, and the others "
        f"failed: {next((trial.note for trial in trials if trial.note), 'no trial')}"
    )


def _quieter(default: str, present: str, times: dict[str, float], wrong: dict[str, float]) -> str:
    """The default where the present record is no faster beyond noise, else the present plan."""
    better = times[present] <= times[default] * (1 - MARGIN)
    return present if better or default in wrong or math.isinf(times[default]) else default


def _recorded(outcome: Outcome, lab: Lab, path: Path) -> Outcome:
    plan = outcome.plan
    default_seconds = outcome.default_seconds if math.isfinite(outcome.default_seconds) else outcome.seconds
    record = Record(
        spec=plan.spec.key(),
        threads=thread_count(lab.target),
        algorithm=plan.algorithm,
        variant=asdict(plan.variant),
        decisions=dict(plan.decisions),
        seconds=outcome.seconds,
        default_seconds=default_seconds,
        isa=instruction_set(lab.target),
        cpu=lab.device,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        versions={name: metadata.version(name) for name in ("apache-tvm", "tvm-conv3d")},
    )
    unwritten = ""
    try:
        # measured side by side with what is there, so that it may replace a number from a quieter day
        records.merge(path, [record], replace=True)
    except OSError as error:
        unwritten = f"{path} can't be written: {error}. Free some space and run this again; the trials are kept"
        warnings.warn(f"{unwritten}. The record is: {record.line()}", RuntimeWarning, stacklevel=2)
    return Outcome(**{**vars(outcome), "record": record, "unwritten": unwritten})
