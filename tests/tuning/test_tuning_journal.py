"""The journal of trials: nothing that was measured is lost."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.measurement_host import Trial

SPEC = Conv3DSpec(1, (4, 12, 12), 8, 16, (3, 3, 3))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "user"))


def target() -> Any:
    return resolve(None, 2)


def plans(count: int) -> list[Plan]:
    plan = default_plan(SPEC, target())
    return [replace(plan, decisions={"depth": number}) for number in range(1, count + 1)]


def kept() -> list[float | None]:
    return [trial.seconds for trial in Journal(SPEC, target()).trials.values()]


def test_a_journal_survives_being_cut_off() -> None:
    first, second, third = plans(3)
    journal = Journal(SPEC, target())
    journal.add([Trial(first, 0.5), Trial(second, None, "run: out of time")])
    with journal.path.open("a") as file:
        file.write('{"algorithm": "dir')
    assert kept() == [0.5, None]
    # what comes after the cut is read, too
    Journal(SPEC, target()).add([Trial(third, 0.25)])
    assert kept() == [0.5, None, 0.25]
    journal.path.write_text(journal.path.read_text().replace("0.27.0", "0.26.0"))
    assert kept() == []


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"algorithm": "direct", "variant": 3, "decisions": 1}', b"\n\n"]
)
def test_a_damaged_line_costs_only_itself(line: bytes) -> None:
    first, second = plans(2)
    journal = Journal(SPEC, target())
    journal.add([Trial(first, 0.5)])
    with journal.path.open("ab") as file:
        file.write(line + b"\n")
    Journal(SPEC, target()).add([Trial(second, 0.25)])
    assert kept() == [0.5, 0.25]


def test_a_full_disk_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = plans(3)
    journal = Journal(SPEC, target())
    journal.add([Trial(first, 0.5)])
    honest = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "a" in mode or "w" in mode:
            with honest(self, "ab") as file:
                file.write(b'{"algor')
            raise OSError(28, "No space left on device")
        return honest(self, mode, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.warns(RuntimeWarning, match=r"can't be kept.*No space"):
            journal.add([Trial(second, 0.25)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is told once
            journal.add([Trial(third, 0.125)])
    journal.add([])
    assert kept() == [0.5, 0.25, 0.125]


def test_two_processes_lose_nothing() -> None:
    """Both have seen no file when they begin."""
    first, second = plans(2)
    one, other = Journal(SPEC, target()), Journal(SPEC, target())
    one.add([Trial(first, 0.5)])
    other.add([Trial(second, 0.25)])
    one.add([Trial(replace(first, decisions={"depth": 9}), 0.125)])
    assert kept() == [0.5, 0.25, 0.125]


def test_a_removed_file_begins_anew() -> None:
    first, second = plans(2)
    journal = Journal(SPEC, target())
    journal.add([Trial(first, 0.5)])
    journal.path.unlink()
    journal.add([Trial(second, 0.25)])
    assert kept() == [0.25]
