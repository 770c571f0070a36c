"""The benchmark of training with PyTorch: a step's gradients in each mode, and what is not timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import bench_networks  # noqa: E402  (needs torch)
import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.bench.training import torch_ways, worker  # noqa: E402
from tvm_conv3d.bench.training.results import Measured, Timing  # noqa: E402
from tvm_conv3d.bench.training.ways import Network, Way  # noqa: E402
from tvm_conv3d.bench.training.worker import Task, error_of, measure  # noqa: E402


def network() -> Network:
    torch.manual_seed(0)
    module, shape = bench_networks.tiny()
    labels = torch.randint(0, 2, (shape[0], *shape[2:]))
    return torch_ways.of_weights(module, torch.randn(shape), labels)


def test_modes_have_the_same_gradients_and_train() -> None:
    right = network().exact()
    assert all(each.dtype == np.float64 for each in right)
    assert len(right) == 6 and all(np.abs(each).max() > 0 for each in right)
    for mode in ("eager", "eager_cl", "ours", "ours_cl"):
        ours.reset_counters()
        way = network().way(mode)
        assert error_of(way.outcome(), right) < 1e-5
        assert (ours.counters().ours > 0) == mode.startswith("ours")
        way.run()
        assert error_of(way.outcome(), right) > 1e-4


def test_what_is_wrong_or_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(mode: str) -> Way:
        if mode == "compile":
            raise ValueError("no compiler")
        way = network().way("eager")
        return way._replace(outcome=lambda: [each * 1.1 for each in way.outcome()]) if mode == "ours" else way

    monkeypatch.setattr(torch_ways, "MODES", ("eager", "compile", "ours", "ours_cl"))
    monkeypatch.setattr(torch_ways, "prepare", lambda kind, small: Network(prepared, network().exact))
    found = measure(Task("basicunet", "torch", "step", 2, torch.get_num_threads(), 60.0))
    notes = {mode: timing.note for mode, timing in found.modes.items()}
    wrong = "WRONG, relative error 0.1: not timed"
    assert notes == {"eager": "", "compile": "ValueError: no compiler", "ours": wrong, "ours_cl": ""}
    assert {mode: len(t.seconds) for mode, t in found.modes.items()} == {
        "eager": 2,
        "compile": 0,
        "ours": 0,
        "ours_cl": 2,
    }


def test_ours_may_be_off_as_far_as_the_framework_is() -> None:
    errors = {"eager": 1e-2, "compile": 2e-2, "ours": 0.5}
    found = Measured("ct", "torch", "step", {mode: Timing(error=error) for mode, error in errors.items()})
    assert worker.allowed_error(found, "eager") == worker.TOLERANCE
    assert worker.allowed_error(found, "ours_cl") == pytest.approx(3e-2)
    found.modes["compile"].note = "WRONG"
    assert worker.allowed_error(found, "ours_cl") == pytest.approx(1.5e-2)
    for kind, least in worker.LEAST.items():
        assert worker.allowed_error(Measured("ct", "torch", kind), "ours") == least


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str, small: bool) -> Any:
        raise ImportError("no such library")

    monkeypatch.setattr(torch_ways, "prepare", missing)
    found = worker.measure(Task("basicunet", "torch", "step", 1, torch.get_num_threads(), 60.0))
    assert not found.available and found.note == "not available: ImportError: no such library"
