"""The benchmark of training, its parts that need no framework; nothing here looks at a time."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_conv3d.bench.networks import command as networks
from tvm_conv3d.bench.training import command, results
from tvm_conv3d.bench.training.results import INFERENCE, STEP, Measured, Timing
from tvm_conv3d.bench.training.worker import error_of


def measured(**milliseconds: float | None) -> Measured:
    modes = {
        mode: Timing([ms / 1e3] * 3, 1e-6) if ms is not None else Timing(note="no such instruction")
        for mode, ms in milliseconds.items()
    }
    return Measured("basicunet", "torch", STEP, modes)


BOTH = measured(eager=30.0, compile=20.0, ours=10.0, ours_cl=8.0)
LACKING = measured(eager=9.0, ours=None)
ABSENT = Measured("ct", "keras on jax", INFERENCE, note="not available: no jax", available=False)


def test_ratios_take_the_fastest_mode_of_either() -> None:
    assert (BOTH.fastest(ours=False), BOTH.fastest(ours=True)) == ("compile", "ours_cl")
    assert BOTH.ratio() == pytest.approx(2.5)
    assert LACKING.ratio() is None and ABSENT.ratio() is None


def test_failures_are_ours_alone() -> None:
    assert BOTH.failures() == ABSENT.failures() == measured(eager=None, ours=1.0).failures() == []
    assert LACKING.failures() == ["basicunet, step, torch, ours: no such instruction"]
    assert Measured("ct", "torch", STEP, note="status 7").failures() == ["ct, step, torch: status 7"]


def test_tables() -> None:
    _, both, lacking, absent = results.table([BOTH, LACKING, ABSENT])
    assert both == ["basicunet", "step", "torch", "20.0", "compile", "8.0", "ours_cl", "2.50", "1.0e-06"]
    assert lacking[3:] == ["9.0", "eager", "-", "-", "-", "-"] and set(absent[3:]) == {"-"}
    assert results.by_mode([LACKING, BOTH])[0][3:] == ["eager", "ours", "compile", "ours_cl"]
    assert results.notes([LACKING, ABSENT])[1] == "ct, inference, keras on jax: not available: no jax"


def test_errors_of_gradients() -> None:
    right = [np.array([3.0, 4.0], np.float32), np.zeros((2, 1), np.float32)]
    assert error_of([right[0] + [0.5, 0.0], right[1]], right) == pytest.approx(0.1)
    assert error_of(right, right) == 0
    for wrong in (right[:1], [right[0][None], right[1]], [right[0] * np.nan, right[1]]):
        assert error_of(wrong, right) == np.inf
    assert error_of([0 * right[0], right[1]], [0 * right[0], right[1]]) == np.inf


def answering(found: Measured | None, asked: list[Any]) -> Any:
    """Stands in for `subprocess.run` with a worker."""

    def run(arguments: list[str], **options: Any) -> Any:
        asked.append((json.loads(arguments[-2]), options["env"]["KERAS_BACKEND"]))
        if found is not None:
            Path(arguments[-1]).write_text(
                json.dumps({**vars(found), "modes": {m: vars(t) for m, t in found.modes.items()}})
            )
        return subprocess.CompletedProcess(arguments, 0 if found is not None else 7)

    return run


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(command, "find_spec", lambda name: object() if name == "torch" else None)
    monkeypatch.setattr(subprocess, "run", answering(BOTH, asked))
    path = tmp_path / "run.json"
    assert networks.main(["--training", "--small", "--rounds", "2", "--threads", "1", "--json", str(path)]) == 0
    assert [(task["network"], task["kind"], backend) for task, backend in asked] == [
        ("basicunet", STEP, "torch"),
        ("ct", STEP, "torch"),
        ("ct", INFERENCE, "torch"),
    ]
    assert asked[0][0]["small"] and (asked[0][0]["rounds"], asked[0][0]["threads"]) == (2, 1)
    assert re.search(r"20.0 +compile +8.0 +ours_cl +2.50", capsys.readouterr().out)
    assert [Measured.of(each) for each in json.loads(path.read_text())["found"]] == [BOTH] * 3
    monkeypatch.setattr(subprocess, "run", answering(LACKING, asked))
    assert networks.main(["--training"]) == 1
    assert "Not right or not timed: basicunet, step, torch, ours: no such" in capsys.readouterr().err


def test_a_process_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    options = networks.parser().parse_args(["--training", "--limit", "0.1"])
    monkeypatch.setattr(subprocess, "run", answering(None, []))
    assert command.measured(command.CASES[0], options).note == "its process ended with status 7"

    def hanging(arguments: list[str], timeout: float, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr(subprocess, "run", hanging)
    assert command.measured(command.CASES[0], options).note.startswith("no answer within")
