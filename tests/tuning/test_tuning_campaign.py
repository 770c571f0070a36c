"""Whose turn it is where time is short, and what a person sees of it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace

import pytest

pytest.importorskip("rich", reason="tuning's display needs rich")

from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning import campaign, show
from tvm_conv3d.tuning.campaign import Campaign
from tvm_conv3d.tuning.layer import Outcome
from tvm_conv3d.tuning.measurement_host import Trial
from tvm_conv3d.tuning.tasks import Task

SPEC = Conv3DSpec(1, (4, 6, 6), 8, 16, (3, 3, 3))
FINAL = 5.0


@dataclass
class Clock:
    """Time that passes only while a layer has its turn."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(campaign, "time", found)
    monkeypatch.setattr(show, "time", found)
    return found


def plan() -> Plan:
    return default_plan(SPEC, resolve(None, 2))


@dataclass
class FakeTuning:
    """Gains so much at each turn; a batch takes a while, and is not cut short."""

    clock: Clock
    gains: list[float]
    batch: float = 1.0
    limit: int = 10**9
    turns: list[float] = field(default_factory=list)
    best: float = 1.0
    interrupt_at: int = 0

    @property
    def exhausted(self) -> bool:
        return len(self.turns) >= self.limit

    def turn(self, seconds: float) -> Outcome:
        if math.isfinite(seconds):
            self.clock.now += max(1, math.ceil(seconds / self.batch)) * self.batch
        self.clock.now += FINAL
        self.turns.append(seconds)
        self.best /= self.gains[min(len(self.turns), len(self.gains)) - 1]
        trials = (Trial(plan(), 1.0), Trial(plan(), self.best))
        return Outcome(SPEC, plan(), self.best, 1.0, trials, interrupted=len(self.turns) == self.interrupt_at)


def run(clock: Clock, layers: dict[str, FakeTuning | Exception], budget: float) -> Campaign[str]:
    def start(name: str) -> FakeTuning:
        made = layers[name]
        if isinstance(made, Exception):
            raise made
        return made

    found = Campaign(list(layers), start, budget, lambda name: None, lambda name, outcome, error: None)
    found.run()
    return found


def test_time_goes_where_it_gains(clock: Clock) -> None:
    layers = {
        "gains": FakeTuning(clock, [1.1, 1.05]),
        "gained": FakeTuning(clock, [1.5, 1.0]),
        "never": FakeTuning(clock, [1.0]),
    }
    began = clock.now
    run(clock, dict(layers), 300)
    assert clock.now - began == pytest.approx(300, abs=20)
    counts = {name: len(layer.turns) for name, layer in layers.items()}
    assert counts["gains"] > 2 * counts["gained"] >= 2 * counts["never"] >= 2
    spent = {name: sum(layer.turns) for name, layer in layers.items()}
    assert spent["gains"] > spent["never"]


def test_no_layer_goes_without(clock: Clock) -> None:
    """The finals come on top of the search, and those that are measured last have as much time as the first."""
    layers = {str(number): FakeTuning(clock, [1.0], batch=8.0 if number == 7 else 1.0) for number in range(39)}
    began = clock.now
    run(clock, dict(layers), 1200)
    first = [layer.turns[0] for layer in layers.values()]
    assert min(first[1:]) > 0.6 * max(first[1:])
    assert clock.now - began == pytest.approx(1200, abs=20)
    assert all(len(layer.turns) <= 3 for layer in layers.values())


def test_what_is_exhausted_gets_no_turn(clock: Clock) -> None:
    layers = {"small": FakeTuning(clock, [2.0], limit=1), "large": FakeTuning(clock, [1.1])}
    run(clock, dict(layers), 200)
    assert len(layers["small"].turns) == 1
    # alone it needs no finals in between
    assert len(layers["large"].turns) == 2


def test_without_a_budget_each_has_one_turn(clock: Clock) -> None:
    layers = {"a": FakeTuning(clock, [1.1]), "b": FakeTuning(clock, [1.1])}
    assert not run(clock, dict(layers), math.inf).interrupted
    assert [layer.turns for layer in layers.values()] == [[math.inf], [math.inf]]


def test_one_layer_has_all_the_time(clock: Clock) -> None:
    layer = FakeTuning(clock, [1.1])
    run(clock, {"one": layer}, 60)
    assert layer.turns == [60]


def test_a_layer_that_fails_costs_only_itself(clock: Clock) -> None:
    layers: dict[str, FakeTuning | Exception] = {
        "bad": ValueError("nothing to tune"),
        "worse": RuntimeError("no plan"),
        "good": FakeTuning(clock, [1.1]),
    }
    found = run(clock, layers, 60)
    assert found.failed
    assert [name for name, _ in found._done()] == ["good"]


@pytest.mark.parametrize("turn", [1, 2])
def test_ctrl_c_ends_it(clock: Clock, turn: int) -> None:
    layers = {"a": FakeTuning(clock, [1.5], interrupt_at=turn), "b": FakeTuning(clock, [1.0])}
    found = run(clock, dict(layers), 100)
    assert found.interrupted
    assert len(layers["a"].turns) == turn
    assert [name for name, _ in found._done()] == ["a", "b"][:turn]


def display(peak: float | None = 200.0, budget: float = math.inf, layers: int = 2) -> tuple[show.Progress, io.StringIO]:
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=150, force_terminal=True, color_system=None)
    return show.Progress(console, layers, peak, budget=budget), text


def trials(*seconds: float | None) -> list[Trial]:
    return [Trial(plan(), each) for each in seconds]


def test_the_display_tells_all(clock: Clock) -> None:
    """Trials, best GFLOP/s, fraction of peak, gain over the default, time left."""
    progress, text = display()
    with progress:
        progress.begin(Task("a layer", SPEC), 8)
        clock.now += 10
        progress.update(SPEC, trials(2 * SPEC.gflop / 100, None, SPEC.gflop / 100, SPEC.gflop / 80))
        progress._bars.refresh()
    shown = text.getvalue()
    assert "4/8 trials" in shown
    assert "100.0 GF/s (50%), 2.00x the default" in shown
    assert "0/2 layers" in shown
    # half of the first of two layers took ten seconds
    assert "about 0:00:30 left" in shown


def test_the_budget_counts_down_between_trials(clock: Clock) -> None:
    progress, text = display(None, budget=3700)
    with progress:
        progress.begin(Task("a layer", SPEC), None)
        clock.now += 90
        progress._bars.refresh()
    assert "1:00:10 left" in text.getvalue()
    assert "%" not in text.getvalue()


def test_a_later_turn_is_told_where_it_recorded(clock: Clock) -> None:
    progress, text = display()
    task = Task("a layer", SPEC)
    first = Outcome(SPEC, plan(), 0.5, 1.0, tuple(trials(1.0, 0.5)))
    record = object()
    with progress:
        for outcome in (first, first, replace(first, record=record), replace(first, record=record)):
            progress.begin(task, None)
            progress.end(task, outcome)
    lines = [line for line in text.getvalue().splitlines() if "a layer: " in line]
    assert len(lines) == 2
    assert "present plan stays" in lines[0]
    assert "recorded" in lines[1]


def test_the_closing_table() -> None:
    from rich.console import Console

    text = io.StringIO()
    outcome = Outcome(SPEC, plan(), 0.5, 1.0, tuple(trials(1.0, None, 0.5)))
    broken = replace(outcome, default_seconds=math.inf)
    Console(file=text, width=160).print(show.table([(Task("one", SPEC), outcome), (Task("two", SPEC), broken)], None))
    shown = text.getvalue()
    assert "2 layers, 2.000x the default" in shown
    for cell in ("one", plan().algorithm, "1000.000", "500.000", "2.00x", "│      3 │      1 │"):
        assert cell in shown
