"""Tuning: from the search to the record, and what goes wrong on the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xgboost", reason="tuning needs xgboost")
pytest.importorskip("psutil", reason="tuning needs psutil")

from tvm_conv3d.engine import records
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.engine.records import FILE_NAME
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve, target_key
from tvm_conv3d.tuning import layer
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.measure import Bench
from tvm_conv3d.tuning.measurement_host import MeasurementHost, Trial
from tvm_conv3d.tuning.search import Options, Search, contenders_for

#: Strided, so that its default stays the direct convolution.
SPEC = Conv3DSpec(1, (4, 12, 12), 8, 16, (3, 3, 3), (1, 2, 2), pads=(Pads(1, 1),) * 3, post_ops=("relu",))
DEPTHWISE = Conv3DSpec(1, (4, 9, 9), 16, 16, (3, 3, 3), groups=16)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "user"))
    monkeypatch.delenv(records.LOGS_VARIABLE, raising=False)


def target() -> Any:
    return resolve(None, 2)


class FakeHost(MeasurementHost):
    """Measures nothing: a plan's seconds follow from its words."""

    def __init__(self, stop_after: int = 10**9) -> None:
        super().__init__(target())
        self.tried: list[str] = []
        self.wrong: set[str] = set()
        self._stop_after = stop_after

    def seconds(self, plan: Plan) -> float:
        if plan.algorithm != "direct":
            return 0.1
        cost = 2.0 + abs(plan.decisions["depth"] - 2) + abs(plan.decisions["unroll"] - 4) / 10
        return 1e-3 * cost * (1.0 if plan.variant.order == "filters_parallel" else 1.2)

    def try_plans(self, plans: Sequence[Plan], cutoff_seconds: float = 0) -> Iterator[Trial]:
        for plan in plans:
            if len(self.tried) >= self._stop_after:
                raise KeyboardInterrupt
            self.tried.append(plan.describe())
            yield Trial(plan, self.seconds(plan))

    def measure_interleaved(self, plans: Sequence[Plan]) -> list[float]:
        return [self.seconds(plan) for plan in plans]

    def error(self, plan: Plan) -> float:
        return 1.0 if plan.describe() in self.wrong else 1e-7


def log_file(folder: Path) -> Path:
    return folder / target_key(target()) / FILE_NAME


def test_variants_compete() -> None:
    for spec, names in ((SPEC, {"direct"}), (DEPTHWISE, {"direct", "grouped"})):
        contenders = contenders_for(spec, target())
        default = default_plan(spec, target())
        assert (contenders[0].algorithm.name, contenders[0].variant) == (default.algorithm, default.variant)
        assert names <= {contender.algorithm.name for contender in contenders}
        assert len({(one.algorithm.name, one.variant) for one in contenders}) == len(contenders) >= 8


def test_a_seed_repeats_its_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    for run, seed in enumerate((7, 7, 8)):
        monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / str(run)))
        host = FakeHost()
        trials = Search(SPEC, host, Options(trials=24, seed=seed), Journal(SPEC, target())).run()
        assert len(trials) == len(host.tried) == len(set(host.tried)) == 24, "all of them are used up"
        tried.append(host.tried)
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]


def test_the_search_finds_and_the_record_serves(tmp_path: Path) -> None:
    host = FakeHost()
    outcome = layer.tune(SPEC, host, Options(trials=32), tmp_path)
    assert outcome.gain > 1.02
    assert outcome.record is not None
    assert min(host.seconds(trial.plan) for trial in outcome.trials) == pytest.approx(outcome.seconds)
    plan = make_plan(SPEC, target(), tmp_path)
    assert plan.origin == str(log_file(tmp_path))
    assert plan.describe() == outcome.plan.describe()
    # what is there stays where nothing faster is found
    before = log_file(tmp_path).read_text()
    again = layer.tune(SPEC, host, Options(trials=32), tmp_path)
    assert again.record is None
    assert log_file(tmp_path).read_text() == before
    assert len(host.tried) == 32


def test_the_default_replaces_a_slower_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the decisions that the design space makes of its own, which wish for larger tiles than there are."""
    spec = Conv3DSpec(1, (16, 64, 64), 8, 16, (1, 1, 1))
    default = default_plan(spec, target())
    assert max(default.decisions.values()) > 64
    host = FakeHost()
    for slow in (True, False):

        def measure_interleaved(plans: Sequence[Plan], slow: bool = slow) -> list[float]:
            return [2e-3 if (plan.describe() == default.describe()) == slow else 1e-3 for plan in plans]

        monkeypatch.setattr(host, "measure_interleaved", measure_interleaved)
        assert layer.tune(spec, host, Options(trials=4), tmp_path).record is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = make_plan(spec, target(), tmp_path)
    assert (plan.origin, plan.variant) == (str(log_file(tmp_path)), default.variant)


def test_what_is_no_faster_beyond_noise_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost()
    monkeypatch.setattr(host, "measure_interleaved", lambda plans: [1e-3 * (1 - 0.001 * i) for i in range(len(plans))])
    outcome = layer.tune(SPEC, host, Options(trials=12), tmp_path)
    assert outcome.record is None
    assert outcome.plan.describe() == default_plan(SPEC, target()).describe()
    assert not log_file(tmp_path).exists()


def test_a_winner_must_win_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest of several owes its time to luck, too."""
    host = FakeHost()
    rounds: list[list[float]] = []

    def measure_interleaved(plans: Sequence[Plan]) -> list[float]:
        times = [1e-3, *[0.9e-3] * (len(plans) - 1)]
        if len(rounds) == 1:
            times[-1] = 0.99e-3 if "first" in str(path) else 0.95e-3
        rounds.append(times)
        return times

    monkeypatch.setattr(host, "measure_interleaved", measure_interleaved)
    for name in ("first", "second"):
        path = tmp_path / name
        rounds.clear()
        outcome = layer.tune(SPEC, host, Options(trials=12), path)
        assert len(rounds[0]) > 2 == len(rounds) == len(rounds[1])
        assert log_file(path).exists() == (outcome.record is not None) == (name == "second")
        # the numbers of the second round, not those by which it was chosen
        assert (outcome.seconds, outcome.default_seconds) == ((1e-3, 1e-3) if name == "first" else (0.95e-3, 1e-3))


def test_turns_go_on_where_the_last_ended(tmp_path: Path) -> None:
    host = FakeHost()
    tuning = layer.Tuning(SPEC, host, Options(trials=40), tmp_path)
    rounds, honest = [], host.measure_interleaved
    host.measure_interleaved = lambda plans: rounds.append(len(plans)) or honest(plans)  # type: ignore
    counts = []
    while not tuning.exhausted:
        counts.append(len(tuning.turn(0.0).trials))
    assert counts == sorted(counts) and counts[-1] == len(host.tried) == len(set(host.tried)) == 40
    assert len(counts) > 3
    # a final is held only where the search has brought something faster
    assert 1 <= len(rounds) / 2 < len(counts)
    assert make_plan(SPEC, target(), tmp_path).describe() == tuning.turn(0.0).plan.describe()


@pytest.mark.deep
def test_an_algorithm_far_behind_is_given_up() -> None:
    host = FakeHost()
    trials = Search(DEPTHWISE, host, Options(trials=200), Journal(DEPTHWISE, target())).run()
    tried = [trial.plan.algorithm for trial in trials]
    variants = {trial.plan.variant for trial in trials if trial.plan.algorithm == "grouped"}
    everything = {one.variant for one in contenders_for(DEPTHWISE, target()) if one.algorithm.name == "grouped"}
    assert 3 <= len(variants) < len(everything)
    assert tried.count("direct") > 8


def test_wrong_numbers_are_not_recorded(tmp_path: Path) -> None:
    host = FakeHost()
    fastest = layer.tune(SPEC, host, Options(trials=32), tmp_path / "first").plan.describe()
    host.wrong.add(fastest)
    with pytest.warns(UserWarning, match="wrong numbers"):
        outcome = layer.tune(SPEC, host, Options(trials=32), tmp_path / "second")
    assert fastest in outcome.wrong
    assert outcome.plan.describe() != fastest
    host.wrong = {trial.plan.describe() for trial in outcome.trials} | {default_plan(SPEC, target()).describe()}
    with pytest.warns(UserWarning, match="wrong numbers"), pytest.raises(RuntimeError, match="right numbers"):
        layer.tune(SPEC, host, Options(trials=32), tmp_path / "third")
    assert not log_file(tmp_path / "third").exists()


def test_ctrl_c_loses_nothing_and_a_second_run_goes_on(tmp_path: Path) -> None:
    host = FakeHost(stop_after=13)
    outcome = layer.tune(SPEC, host, Options(trials=32), tmp_path)
    assert outcome.interrupted
    assert outcome.record is not None
    # the batch at hand is cut in its midst, and what was measured of it is kept
    assert len(outcome.trials) == len(Journal(SPEC, target()).trials) == 13
    again = FakeHost()
    resumed = layer.tune(SPEC, again, Options(trials=32), tmp_path)
    assert not resumed.interrupted
    assert not set(again.tried) & set(host.tried)
    assert len(resumed.trials) == 32
    assert len(again.tried) == 32 - 13


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match=r"can't be written.*\"spec\""):
        outcome = layer.tune(SPEC, FakeHost(), Options(trials=32), tmp_path)
    assert "No space" in outcome.unwritten
    monkeypatch.undo()
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "user"))
    assert len(Journal(SPEC, target()).trials) == 32


@pytest.mark.parametrize("options", [{"trials": 0}, {"seconds": 0}, {"seed": 0}, {"seed": 2**31}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Received"):
        Options(**options)


def test_an_empty_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to tune"):
        layer.tune(Conv3DSpec(0, (4, 4, 4), 1, 1, (1, 1, 1)), FakeHost(), Options(), tmp_path)


PROBE = """
import json, sys
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import resolve
import numpy as np
from tvm_conv3d.reference import oracle as reference
from tvm_conv3d.runtime import interchange as tensors
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights

spec = Conv3DSpec.parse(sys.argv[1])
rng = np.random.default_rng(1)
x, kernel, bias = (rng.standard_normal(s).astype("float32") for s in (spec.input_shape, spec.kernel_shape, 16))
executor = Executor()
y = executor.convolve(spec, tensors.wrap(x), Weights(kernel, bias, 0))
error = reference.relative_error(y, np.maximum(reference.convolve(spec, x, kernel, bias), 0))
print(json.dumps([executor.plan_for(spec).origin, error]))
"""


def test_from_the_script_to_a_fresh_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layer is really tuned, and a process with no code changed finds the record."""
    from tvm_conv3d.tuning import command

    honest = MeasurementHost.measure_interleaved

    def measure_interleaved(self: MeasurementHost, plans: Sequence[Plan]) -> list[float]:
        """The default, which comes first, seems slow, so that something is recorded however small the gain."""
        first, *others = honest(self, plans)
        return [100 * first, *others]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeasurementHost, "measure_interleaved", measure_interleaved)
        patch.setenv("TVM_NUM_THREADS", "2")
        logs, picture = str(tmp_path / "logs"), tmp_path / "search.png"
        arguments = ["--spec", SPEC.key(), "--trials", "10", "--out", logs, "--plot", str(picture), "--plain"]
        assert command.main(arguments) == 0
        assert picture.stat().st_size > 1000
    (path,) = (tmp_path / "logs").glob(f"*/{FILE_NAME}")
    (line,) = path.read_text().splitlines()
    environment = {**os.environ, records.LOGS_VARIABLE: str(tmp_path / "logs"), "TVM_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, SPEC.key()], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    origin, error = json.loads(done.stdout)
    assert origin == str(path)
    assert error < 2e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert command.main(["--spec", SPEC.key(), "--dry-run", "--out", logs, "--threads", "2"]) == 0
    assert json.loads(line)["algorithm"] in capsys.readouterr().out


def test_a_gradient_of_weights_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record serves the public function, whose gradients of weights and bias are right with it."""
    from tvm_conv3d.functional.gradients import conv3d_weight_gradient
    from tvm_conv3d.tuning import command

    spec = replace(SPEC, direction="weight_gradient", post_ops=(), bias=True)
    honest = MeasurementHost.measure_interleaved

    def measure_interleaved(self: MeasurementHost, plans: Sequence[Plan]) -> list[float]:
        first, *others = honest(self, plans)
        return [100 * first, *others]

    monkeypatch.setattr(MeasurementHost, "measure_interleaved", measure_interleaved)
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    logs = tmp_path / "logs"
    assert command.main(["--spec", spec.key(), "--trials", "6", "--out", str(logs), "--plain"]) == 0
    (path,) = logs.glob(f"*/{FILE_NAME}")
    assert json.loads(path.read_text())["spec"] == spec.key()
    monkeypatch.setenv(records.LOGS_VARIABLE, str(logs))
    plan = make_plan(spec, target())
    assert (plan.origin, plan.algorithm) == (str(path), "weight_gradient")
    rng = np.random.default_rng(3)
    x, gradient = (rng.standard_normal(shape).astype("float32") for shape in (spec.input_shape, spec.output_shape))
    found = conv3d_weight_gradient(x, gradient, spec.kernel, strides=spec.strides, padding=1, bias=True)
    for values, expected in zip(found, oracle.weight_gradient(spec, x, gradient), strict=True):
        assert oracle.relative_error(values, expected) < 2e-6


def test_wrong_gradients_of_weights_and_bias_are_told() -> None:
    bench = Bench.of(replace(SPEC, direction="weight_gradient", post_ops=(), bias=True))
    of_weights, of_bias = oracle.weight_gradient(bench.spec, bench.operands["x"], bench.operands["gradient"])
    right = {"out": of_weights, "bias_gradient": of_bias}
    assert bench.error_of(right) < 1e-12
    for name in right:
        assert bench.error_of({**right, name: 1.01 * right[name]}) == pytest.approx(0.01)
        assert bench.error_of({**right, name: np.full_like(right[name], np.nan)}) == math.inf


def test_a_gpus_gradients_of_weights_have_a_space(capsys: pytest.CaptureFixture[str]) -> None:
    from tvm_conv3d.tuning import command

    spec = replace(SPEC, direction="weight_gradient", post_ops=())
    assert command.main(["--spec", spec.key(), "--target", "cuda:sm_90", "--dry-run"], "cuda") == 0
    told = capsys.readouterr().out
    assert "default" in told and "No algorithm takes" not in told


def usage(*arguments: str) -> int:
    from tvm_conv3d.tuning import command

    return command.main(list(arguments))


BAD_USAGE = {
    "key": (["--spec", "nonsense"], "Not a spec key"),
    "file": (["--layers", "nowhere.csv"], "nowhere.csv"),
    "kind": (["--spec", SPEC.key(), "--target", '{"kind": "vulkan"}'], "Received"),
    "json": (["--spec", SPEC.key(), "--target", "{"], "no JSON"),
    "word": (["--spec", SPEC.key(), "--target", "toaster"], "Received"),
    "elsewhere": (["--spec", SPEC.key(), "--target", '{"kind": "llvm", "mtriple": "riscv64-linux-gnu"}'], "can't run"),
    "threads": (["--spec", SPEC.key(), "--target", '{"kind": "llvm", "num-cores": 4096}'], "CPUs"),
}


@pytest.mark.parametrize(("arguments", "text"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_told(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage(*arguments) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--trials", "0"], ["--seed", "0"], ["--time-budget", "soon"], ["--rpc", "nohost"], ["--input-shape", "1,2"], []],
)
def test_bad_arguments_end_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        usage(*(["--spec", SPEC.key(), *arguments] if arguments else []))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tvm_conv3d.tuning import command

    monkeypatch.setattr(command, "PACKAGES", ("xgboost", "no_such_package"))
    assert usage("--spec", SPEC.key(), "--dry-run") == 2
    assert "no_such_package" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["90s", "1.5m", "90"])
def test_times(text: str) -> None:
    from tvm_conv3d.tuning import command

    assert command._duration(text) == 90
