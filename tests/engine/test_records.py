"""Tuning records: lines, files, merging, and the order in which they are found."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tvm_conv3d.engine import records
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.engine.records import FILE_NAME, Record, RecordError, RecordWarning, lookup, store
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import instruction_set, resolve, target_key

TARGET: dict[str, Any] = {"kind": "llvm", "mcpu": "haswell"}
SPEC = Conv3DSpec(1, (8, 14, 14), 16, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3)


def target(mcpu: str = "haswell", cores: int = 2) -> Any:
    return resolve({**TARGET, "mcpu": mcpu, "num-cores": cores}, cores)


def a_record(spec: Conv3DSpec = SPEC, seconds: float = 0.001, **changes: Any) -> Record:
    """A record that fits the present code, with decisions unlike the default's."""
    plan = default_plan(spec, target(), exact=True)
    fields = {
        "spec": spec.key(),
        "threads": 2,
        "algorithm": plan.algorithm,
        "variant": asdict(plan.variant),
        "decisions": {"depth": 1, "rows": 1, "columns": 1, "unroll": 1},
        "seconds": seconds,
        "default_seconds": 0.002,
        "isa": instruction_set(target()),
        "cpu": "a CPU",
        "date": "2026-01-31",
        "versions": {"apache-tvm": "0.27.0.post1", "tvm-conv3d": "0.1.0"},
    }
    return Record(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder but the test's own is asked."""
    monkeypatch.delenv(records.LOGS_VARIABLE, raising=False)
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "user"))
    monkeypatch.setattr(lookup, "packaged_logs", lambda: tmp_path / "packaged")
    monkeypatch.setattr(lookup, "_warned", set())


def file_of(folder: Path, mcpu: str = "haswell") -> Path:
    return folder / target_key(target(mcpu)) / FILE_NAME


def write(folder: Path, *lines: str, mcpu: str = "haswell") -> Path:
    path = file_of(folder, mcpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def plan_from(folder: Path) -> Plan:
    return make_plan(SPEC, target(), folder)


def test_records_may_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (lookup.packaged_logs(), records.user_logs()):
        write(folder, a_record().line())
    assert make_plan(SPEC, target()).origin != "default"
    monkeypatch.setenv(records.LOGS_VARIABLE, records.NO_LOGS)
    assert make_plan(SPEC, target()).origin == "default"
    write(tmp_path / "given", a_record().line())
    assert plan_from(tmp_path / "given").origin == str(file_of(tmp_path / "given"))


def test_a_line_is_read_back() -> None:
    record = a_record()
    assert Record.parse(record.line()) == record
    assert "\n" not in record.line()
    assert record.line() == Record.parse(record.line()).line()
    assert json.loads(replace(record, seconds=0.123456789).line())["seconds"] == 0.1235


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(a_record().line()), **values})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(a_record().line()).items() if key != name})


BAD = {
    "conflict": "<<<<<<< HEAD",
    "cut off": a_record().line()[:100],
    "no object": "[1, 2]",
    "deep": "[" * 100_000,
    "format": changed(format=2),
    "no format": without("format"),
    "missing": without("decisions"),
    "unknown": changed(trace=[]),
    "spec": changed(spec="n1"),
    "spec with spaces": changed(spec=f" {SPEC.key()}"),
    "empty output": changed(spec=SPEC.key().replace("i8x14x14", "i0x1x1")[:20]),
    "threads": changed(threads=0),
    "threads of text": changed(threads="2"),
    "threads of truth": changed(threads=True),
    "seconds": changed(seconds=0),
    "endless": changed(seconds=float("inf")),
    "not a number": changed(default_seconds=float("nan")),
    "decision": changed(decisions={"depth": "1"}),
    "decisions": changed(decisions=[1]),
    "variant": changed(variant={"rows": {"a": 1}}),
    "date": changed(date="yesterday"),
    "algorithm": changed(algorithm=7),
}


def test_an_error_says_what_is_allowed_and_what_was_found() -> None:
    with pytest.raises(RecordError, match="its threads must be an integer of at least 1, not '2'"):
        Record.parse(BAD["threads of text"])
    with pytest.raises(RecordError, match="its date must be a date YYYY-MM-DD, not 'yesterday'"):
        Record.parse(BAD["date"])


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_skipped_with_one_warning(line: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        Record.parse(line)
    other = a_record(replace(SPEC, batch=2))
    path = write(tmp_path, other.line(), line, a_record().line())
    with pytest.warns(RecordWarning, match=rf"{path}, line 2 is skipped") as seen:
        assert set(records.load(path).records) == {other.key, a_record().key}
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records.load(path)


def test_a_file_of_nonsense_is_not_a_thousand_warnings(tmp_path: Path) -> None:
    path = write(tmp_path, *["nonsense"] * 1000)
    with pytest.warns(RecordWarning) as seen:
        assert not records.load(path).records
    assert len(seen) == 21
    path.write_bytes(bytes(range(128, 256)))
    with pytest.warns(RecordWarning, match="line 1"):
        assert not records.load(path).records


UNFIT = {
    "algorithm": {"algorithm": "magic"},
    "fields": {"variant": {"wheels": 4}},
    "too few fields": {"variant": {"lanes": 8}},
    "type": {"variant": {**a_record().variant, "rows": "many"}},
    "huge": {"variant": {**a_record().variant, "rows": 10**6}},
    "nought": {"variant": {**a_record().variant, "lanes": 0}},
    "word": {"variant": {**a_record().variant, "gather": "none"}},
    "order": {"variant": {**a_record().variant, "order": [1, 2]}},
    "unknown decision": {"decisions": {"depth": 1, "rows": 1, "columns": 1, "unroll": 1, "colour": 3}},
    "missing decision": {"decisions": {"depth": 1}},
    "no divisor": {"decisions": {"depth": 3, "rows": 1, "columns": 1, "unroll": 1}},
    "other algorithm": {"algorithm": "grouped"},
    "other instructions": {"isa": "x86_64-512x32"},
}


@pytest.mark.parametrize("changes", UNFIT.values(), ids=UNFIT.keys())
def test_what_does_not_fit_is_skipped(changes: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, a_record(**changes).line())
    with pytest.warns(RecordWarning, match=rf"{path}, line 1 is skipped") as seen:
        assert plan_from(tmp_path) == default_plan(SPEC, target())
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan_from(tmp_path).origin == "default"


def test_a_record_makes_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path, a_record().line())
    plan = plan_from(tmp_path)
    assert (plan.origin, plan.decisions) == (str(path), a_record().decisions)
    assert plan.variant == default_plan(SPEC, target(), exact=True).variant
    assert make_plan(SPEC, target(), path).origin == str(path)
    assert make_plan(SPEC, target(cores=4), tmp_path).origin == "default"
    with pytest.raises(ValueError, match="Received"):
        make_plan(SPEC, target(), tmp_path / "nowhere")


def test_order_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.LOGS_VARIABLE, str(tmp_path / "environment"))
    places = [
        (tmp_path / "explicit", "haswell"),
        (tmp_path / "environment", "haswell"),
        (tmp_path / "user" / "tuning_logs", "haswell"),
        (tmp_path / "packaged", "haswell"),
        (tmp_path / "packaged", "znver2"),
        (tmp_path / "packaged", "alderlake"),
    ]
    files = [write(folder, a_record().line(), mcpu=mcpu) for folder, mcpu in places]
    write(tmp_path / "packaged", a_record(isa="x86_64-512x32").line(), mcpu="skylake-avx512")
    expected = [files[i] for i in (0, 1, 2, 3, 5, 4)]
    for path in expected:
        assert plan_from(tmp_path / "explicit").origin == str(path)
        path.unlink()
    assert plan_from(tmp_path / "explicit").origin == "default"


def test_neighbours_have_the_same_instructions(tmp_path: Path) -> None:
    path = write(tmp_path / "packaged", a_record(isa="x86_64-512x32").line(), mcpu="znver4")
    wide = make_plan(SPEC, target("znver5"))
    assert wide.origin == str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_plan(SPEC, target()).origin == "default"
        assert make_plan(SPEC, resolve({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "num-cores": 2}, 2)).origin


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.LOGS_VARIABLE, str(tmp_path / "gone"))
    with pytest.warns(RecordWarning, match=records.LOGS_VARIABLE):
        assert make_plan(SPEC, target()).origin == "default"


def test_merging_keeps_the_faster_and_sorts(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    slow, fast, other = a_record(seconds=0.003), a_record(seconds=0.001), a_record(replace(SPEC, batch=3))
    many = replace(slow, threads=16)
    records.merge(path, [many, other, slow])
    records.merge(path, [fast])
    records.merge(path, [slow])
    assert path.read_text().splitlines() == [fast.line(), many.line(), other.line()]
    records.merge(path, [slow], replace=True)
    assert path.read_text().splitlines()[0] == slow.line()
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))) + "from the future\n")
    records.merge(path, [])
    assert path.read_text().splitlines() == [slow.line(), many.line(), other.line(), "from the future"]
    doubled = write(tmp_path, fast.line(), slow.line())
    assert records.load(doubled).records[fast.key] == fast
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == [FILE_NAME]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path)
    records.merge(path, [a_record()])
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, full)
            with pytest.raises(OSError, match="No space"):
                records.merge(path, [a_record(replace(SPEC, batch=4))])
        assert path.read_text() == before
        assert not list(path.parent.glob(f".{FILE_NAME}-*"))


def _write_some(path: Path, first: int) -> None:
    for batch in range(first, first + 5):
        records.merge(path, [a_record(replace(SPEC, batch=batch))])


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_write_some, args=(path, first)) for first in (1, 6, 11)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(records.load(path).records) == 15


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    assert not records.load(path).records
    for batch in (1, 2, 3):
        records.merge(path, [a_record(replace(SPEC, batch=batch))])
        assert len(records.load(path).records) == batch
    assert records.load(path) is records.load(path)


def test_a_look_up_among_ten_thousand_is_quick(tmp_path: Path) -> None:
    template = a_record().line()
    lines = [template.replace('"n1_', f'"n{batch}_') for batch in range(1, 10_001)]
    write(tmp_path, *lines)
    spec = replace(SPEC, batch=5000)
    began = time.perf_counter()
    assert next(records.find(spec, target(), tmp_path)).line == 5000
    assert time.perf_counter() - began < 5
    times = []
    for _ in range(20):
        began = time.perf_counter()
        assert next(records.find(spec, target(), tmp_path)).record.spec == spec.key()
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3
    began = time.perf_counter()
    missing = list(records.find(replace(SPEC, batch=20_000), target(), tmp_path))
    assert not missing
    assert time.perf_counter() - began < 1e-2


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    path.mkdir(parents=True)
    with pytest.warns(RecordWarning, match="can't be read"):
        assert not store.load(path).records
