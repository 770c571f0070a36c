"""The processes that compile and measure: what happens there costs only itself."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xgboost", reason="tuning needs xgboost")
pytest.importorskip("psutil", reason="tuning needs psutil")

from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning import layer, measure
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.measurement_host import Limits, MeasurementHost
from tvm_conv3d.tuning.search import Options
from tvm_conv3d.tuning.workers import NoWorkerError, Worker, WorkerError, answer_requests, ask_all

#: Strided, so that its default stays the direct convolution.
SPEC = Conv3DSpec(1, (4, 12, 12), 8, 16, (3, 3, 3), (1, 2, 2), pads=(Pads(1, 1),) * 3, post_ops=("relu",))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "user"))


def target() -> Any:
    return resolve(None, 2)


def serve_moods(connection: Connection) -> None:
    """Answers as told: dies, hangs, fails, or repeats the request."""

    def handle(request: Any) -> Any:
        if request == "die":
            os.abort()
        if request == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if request == "hang":
            time.sleep(1000)
        if request == "fail":
            raise ValueError("no such thing")
        return request

    answer_requests(connection, handle)


@pytest.fixture
def moody() -> Iterator[list[Worker]]:
    workers = [Worker(serve_moods), Worker(serve_moods)]
    yield workers
    for worker in workers:
        worker.close()


def test_a_dying_or_hanging_process_costs_only_its_request(moody: list[Worker]) -> None:
    ask_all(moody, ["warm", "up"], 1)
    requests = ["a", "die", "b", "hang", "fail", "c"]
    answers = ask_all(moody, requests, 1)
    texts = [str(answer) for answer in answers]
    assert [a for a in answers if not isinstance(a, WorkerError)] == ["a", "b", "c"]
    assert "SIGABRT" in texts[1]
    assert texts[3] == "out of time"
    assert texts[4] == "ValueError: no such thing"


def test_what_is_killed_from_outside_is_told_apart(moody: list[Worker]) -> None:
    answers = ask_all(moody, ["kill", "die"], 5)
    assert [(answer.killed, isinstance(answer, WorkerError)) for answer in answers] == [(True, True), (False, True)]


def test_what_is_killed_from_outside_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KILL_ONCE", str(tmp_path / "killed"))
    plan = default_plan(SPEC, target())
    with MeasurementHost(target(), builders=1, serve_builds=serve_killed, measurer=Worker(serve_killed)) as host:
        (trial,) = host.try_plans([plan])
    assert (tmp_path / "killed").read_text() == "build measure "
    assert (trial.seconds, trial.note) == (0.5, "")


def serve_killed(connection: Connection) -> None:
    """Builds nothing and measures half a second, and is killed at the first request of each kind."""

    def handle(request: Any) -> Any:
        kind, path = "measure" if isinstance(request, measure.Request) else "build", Path(os.environ["TEST_KILL_ONCE"])
        done = path.read_text() if path.exists() else ""
        if kind not in done:
            path.write_text(f"{done}{kind} ")
            os.kill(os.getpid(), signal.SIGKILL)
        return Artifact(b"", {}, "") if kind == "build" else [0.5]

    answer_requests(connection, handle)


def serve_nothing(connection: Connection) -> None:
    raise SystemExit(3)


def test_no_candidate_is_blamed_where_no_process_starts(tmp_path: Path) -> None:
    built = MeasurementHost(target(), builders=2, serve_builds=serve_nothing)
    with built as host, pytest.raises(NoWorkerError, match="status 3"):
        layer.tune(SPEC, host, Options(trials=8), tmp_path)
    assert not Journal(SPEC, target()).trials


CRASHING, HANGING, LYING = 1, 2, 3


def serve_mines(connection: Connection) -> None:
    """The measured process, in which plans of some orders are mined."""
    measure.warm_up()

    def handle(request: measure.Request) -> Any:
        bench = measure.Bench.of(request.plans[0][0].spec)
        mood = json.loads(os.environ["TEST_MOODS"]).get(str(request.plans[0][0].variant.order))
        if request.action == "time" and mood == CRASHING:
            os.abort()
        if request.action == "time" and mood == HANGING:
            time.sleep(1000)
        return measure.perform(request, bench)

    answer_requests(connection, handle)


def test_a_candidate_that_crashes_or_hangs_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = default_plan(SPEC, target())
    orders = ("filters_spatial", "spatial_filters", "filters_parallel")
    others = [replace(plan, variant=replace(plan.variant, order=order)) for order in orders]
    monkeypatch.setenv("TEST_MOODS", json.dumps({orders[0]: CRASHING, orders[1]: HANGING}))
    with MeasurementHost(target(), Limits(run=8), builders=1, measurer=Worker(serve_mines)) as host:
        trials = list(host.try_plans(others))
        assert "SIGABRT" in trials[0].note
        assert "out of time" in trials[1].note
        assert trials[2].seconds is not None and trials[2].seconds > 0
        broken = replace(plan, variant=replace(plan.variant, gather="none"))
        assert "padded copy" in next(host.try_plans([broken])).note
        assert host.error(others[2]) < 1e-6
