"""What a person sees of tuning: the live progress, the closing table and the picture."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.tuning.layer import Outcome
from tvm_conv3d.tuning.measurement_host import Trial
from tvm_conv3d.tuning.tasks import Task

#: Layers that the picture tells apart by colour.
_MAX_LINES = 20


class Progress:
    """The live display; a context manager.

    Args:
        console: a `rich.console.Console`.
        layers: how many will be tuned.
        peak: GFLOP/s of the machine in float32, None where unknown.
        plain: show nothing live, only a line for each finished turn of a layer.
        budget: seconds of the whole run; infinite where trials end it.
    """

    def __init__(
        self, console: Any, layers: int, peak: float | None, plain: bool = False, budget: float = math.inf
    ) -> None:
        from rich import progress, text

        class TimeLeft(progress.ProgressColumn):
            """Counts down between the trials, too."""

            def render(_, bar: Any) -> Any:  # noqa: N805  (`self` is the display)
                return text.Text(self._left(bar))

        self._console, self._peak, self._layers, self._budget = console, peak, layers, budget
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.fields[count]}"),
            progress.TextColumn("{task.fields[best]}"),
            progress.TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            disable=plain,
        )
        self._timed = math.isfinite(budget)
        self._all = self._bars.add_task("layers", total=budget if self._timed else layers, count="", best="")
        self._one: Any = None
        self._expected: int | None = None
        self._began = time.monotonic()
        self._done: set[str] = set()
        self._records: dict[str, Any] = {}
        self._trials = 0

    def __enter__(self) -> Progress:
        self._bars.start()
        self._began = time.monotonic()
        self._refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self._refresh()
        self._bars.stop()

    def begin(self, task: Task, trials: int | None) -> None:
        """A layer's turn begins; its search will make so many trials, None where time ends it."""
        self._expected, self._trials = trials, 0
        self._one = self._bars.add_task(task.name[:40], total=trials, count="0 trials", best="")
        self._refresh()

    def update(self, spec: Conv3DSpec, trials: Sequence[Trial]) -> None:
        """After each trial: trials so far, best GFLOP/s, fraction of peak, gain over the default, time left."""
        self._trials = len(trials)
        count = f"{len(trials)} trials" if self._expected is None else f"{len(trials)}/{self._expected} trials"
        self._bars.update(self._one, completed=len(trials), count=count, best=summary(spec, trials, self._peak))
        self._refresh()

    def end(self, task: Task, outcome: Outcome | None, error: str = "") -> None:
        """A layer's turn is over; a later one is told only where it has brought a record."""
        self._bars.remove_task(self._one)
        self._trials, again = 0, task.name in self._done
        self._done.add(task.name)
        self._refresh()
        if outcome is None:
            self._console.print(f"{task.name}: {error}", style="red", highlight=False)
            return
        if not again or outcome.interrupted or outcome.record is not self._records.get(task.name):
            self._console.print(f"{task.name}: {describe(outcome, self._peak)}", highlight=False)
        self._records[task.name] = outcome.record

    def _refresh(self) -> None:
        """The line of the whole run."""
        # short of the end, where the bar would stop its clock
        completed = min(self._spent, 0.999 * self._budget) if self._timed else self._layers_done
        self._bars.update(self._all, completed=completed, count=f"{len(self._done)}/{self._layers} layers")

    @property
    def _spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def _layers_done(self) -> float:
        """Layers that had a turn; the one at hand counts by its trials."""
        at_hand = self._trials / self._expected if self._expected else 0.0
        return min(len(self._done) + at_hand, self._layers)

    def _left(self, bar: Any) -> str:
        """The time that is left for the whole run, beside its bar."""
        if bar.id != self._all:
            return ""
        if self._timed:
            return f"{_clock(self._budget - self._spent)} left"
        return f"about {_clock(self._spent * (self._layers / self._layers_done - 1))} left" if self._layers_done else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def summary(spec: Conv3DSpec, trials: Sequence[Trial], peak: float | None) -> str:
    """GFLOP/s of the fastest trial, its share of the peak, and its gain over the first one, the default."""
    times = [trial.seconds for trial in trials if trial.seconds is not None]
    if not times:
        return "nothing runs yet"
    gflops = spec.gflop / min(times)
    gain = trials[0].seconds / min(times) if trials[0].seconds is not None else math.nan
    return f"{gflops:7.1f} GF/s{_share(spec, gflops, peak)}, {gain:.2f}x the default"


def describe(outcome: Outcome, peak: float | None) -> str:
    """One line on a finished layer."""
    found = "recorded" if outcome.record is not None and not outcome.unwritten else "present plan stays"
    if outcome.unwritten:
        found = outcome.unwritten
    share = _share(outcome.spec, outcome.gflops, peak)
    stopped = ", stopped by hand" if outcome.interrupted else ""
    return (
        f"{outcome.gflops:.1f} GF/s{share}, {outcome.gain:.2f}x the default, {len(outcome.trials)} trials in "
        f"{outcome.spent:.0f} s{stopped}; {found}"
    )


def table(rows: Sequence[tuple[Task, Outcome]], peak: float | None) -> Any:
    """The closing table, a `rich.table.Table`."""
    from rich.table import Table

    # where the default failed there is nothing to compare with
    gains = [outcome.gain for _, outcome in rows if math.isfinite(outcome.gain)]
    mean = geometric_mean(gains) if gains else math.nan
    found = Table(title=f"{len(rows)} layers, {mean:.3f}x the default (geometric mean)")
    for name in ("layer", "algorithm", "default ms", "tuned ms", "gain", "GF/s", "of peak", "trials", "failed"):
        found.add_column(name, justify="left" if name in ("layer", "algorithm") else "right", overflow="fold")
    for task, outcome in rows:
        failed = sum(trial.seconds is None for trial in outcome.trials)
        found.add_row(
            task.name,
            outcome.plan.algorithm,
            f"{1e3 * outcome.default_seconds:.3f}",
            f"{1e3 * outcome.seconds:.3f}",
            f"{outcome.gain:.2f}x",
            f"{outcome.gflops:.1f}",
            _share(outcome.spec, outcome.gflops, peak).strip(" ()") or "-",
            str(len(outcome.trials)),
            str(failed),
        )
    return found


def best_so_far(outcome: Outcome) -> list[float]:
    """GFLOP/s of the fastest trial after each trial; 0 before the first that ran."""
    times = (trial.seconds if trial.seconds is not None else math.inf for trial in outcome.trials)
    return [outcome.spec.gflop / seconds for seconds in itertools.accumulate(times, min)]


def draw(path: Path, rows: Sequence[tuple[Task, Outcome]]) -> None:
    """Writes the picture of the search: best so far over trials, one line a layer.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the file can't be written.
        ValueError: the file's ending names no kind of picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab20"]
    for number, (task, outcome) in enumerate(rows):
        points = best_so_far(outcome)
        axes.step(range(1, len(points) + 1), points, where="post", label=task.name, color=colours(number % _MAX_LINES))
    axes.set_xlabel("trials")
    axes.set_ylabel("GF/s of the direct convolution, best so far")
    if rows:
        axes.legend(fontsize="small", ncols=1 + len(rows) // _MAX_LINES, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _share(spec: Conv3DSpec, gflops: float, peak: float | None) -> str:
    if peak is None:
        return ""
    # doubles take two places of a vector
    return f" ({gflops / (peak / 2 if spec.dtype == 'float64' else peak):.0%})"
