"""The benchmark's parts; nothing here looks at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from small_layers import SPECS, same_spec
from tvm_conv3d.bench import cli, plots, report, stats
from tvm_conv3d.bench.client import Client, WorkerError
from tvm_conv3d.bench.rows import Row, Timing
from tvm_conv3d.bench.timing import Comparison, Effort
from tvm_conv3d.engine import records
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import problem
from tvm_conv3d.reference.layers import COLUMNS, Layer
from tvm_conv3d.support.roofline import Roof
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.target.resolve import instruction_set, target_key

ROOT = Path(__file__).resolve().parents[2]
HEAD = ",".join(COLUMNS)
QUICK = Effort(rounds=2, min_time=0.001, pause=0.0)
SMALL = Layer("small", SPECS[0], "same")


@pytest.fixture
def client(monkeypatch):
    paths = (str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    started = []

    def start(name, **options):
        started.append(Client(name if name == "oracle" else f"bench_fakes:{name}", 1, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def row(name="a", ours=1.0, **peers):
    spec = same_spec(channels=32, filters=32, kernel=(3, 3, 3), size=(9, 9, 9))
    timings = {peer: Timing(seconds=time, mode="m", modes={"m": [time or 1.0]}) for peer, time in peers.items()}
    mine = Timing(seconds=ours, error=1e-6, origin="default", mode="m", modes={"m": [ours or 1.0]})
    return Row(Layer(name, spec, "same"), mine, timings)


def test_ratios_take_the_fastest_peer():
    one = row(ours=2.0, torch=4.0, openvino=3.0, jax=None)
    assert one.ratio() == 1.5
    assert one.ratio("torch") == 2.0
    assert one.ratio("jax") is None
    assert one.ratio("unknown") is None
    assert one.fastest == "openvino"
    assert row(ours=None, torch=1.0).ratio() is None
    assert row(ours=1.0, torch=None).fastest is None


def test_closing_lines_name_the_least_row():
    rows = [row("a", 1.0, torch=2.0, jax=8.0), row("b", 1.0, torch=8.0, jax=None), row("c", None, torch=1.0)]
    summaries = {summary.title: summary for summary in stats.closing(rows, ["torch", "jax"])}
    fastest = summaries["all, against the fastest"]
    assert (fastest.count, fastest.least, fastest.least_name) == (2, 2.0, "a")
    assert fastest.mean == pytest.approx(4)
    assert summaries["all, against jax"].count == 1
    assert summaries["dense, >= 32 channels, against torch"].mean == pytest.approx(4)
    assert "b" not in "\n".join(report.summary_lines(list(summaries.values()))).split()
    assert report.summary_lines(stats.closing([rows[2]], ["torch"])) == ["no row to compare"]


def test_table_is_aligned_and_marks_what_is_wrong():
    rows = [row("short", 1.0, torch=2.0), row("a_much_longer_name", 0.5, torch=None)]
    rows[1].ours.wrong, rows[1].ours.seconds = True, None
    head, line, first, second = report.table(rows, ["torch", "jax"])
    assert head.split()[:2] == ["layer", "family"]
    assert set(line) == {"-"}
    assert head.index("family") == second.index(rows[1].layer.family)
    assert first.split()[-4:] == ["-", "2.00", "1.0e-06", "default"]
    assert "wrong*" in second
    assert second.split()[-3] == "-"


def test_noise_is_said():
    rows = [row("calm", torch=1.0), row("loud", torch=1.0)]
    assert report.noise_line(rows) == ""
    rows[1].peers["torch"].modes["m"] = [1.0, 2.0]
    assert report.noise_line(rows).endswith(": loud")


def test_contest_checks_before_it_times(client):
    comparison = Comparison(client("oracle"), [client("Wrong"), client("NotANumber"), client("HalfRight")], QUICK)
    versions = comparison.versions(pytest.fail)
    assert versions["wrong"] == "1"
    measured = comparison.run(SMALL)
    assert measured.ours.seconds > 0
    assert measured.ours.error < 1e-12
    assert measured.ours.origin == "definition"
    wrong, nan, half = measured.peers.values()
    assert (wrong.wrong, wrong.seconds) == (True, None)
    assert "WRONG" in wrong.notes["ones"]
    assert (nan.wrong, nan.seconds, math.isinf(nan.error)) == (True, None, True)
    assert not half.wrong
    assert half.mode == "right"
    assert set(half.modes) == {"right"}
    assert "no such instruction" in half.notes["impossible"]
    assert measured.fastest == "bench_fakes:HalfRight"


def test_contest_goes_on_without_a_peer_and_after_a_crash(client):
    said = []
    crashing = client("Crashing")
    comparison = Comparison(client("oracle"), [client("Missing"), crashing, client("Noisy")], QUICK)
    comparison.versions(said.append)
    assert len(said) == 1
    assert "No module named 'missing'" in said[0]
    for _ in range(2):
        measured = comparison.run(SMALL)
        assert "status 7: on my way out" in measured.peers[crashing.name].notes["build"]
        assert measured.peers["bench_fakes:Noisy"].seconds > 0


def test_modes_can_be_chosen(client):
    half = client("HalfRight")
    measured = Comparison(client("oracle"), [half], QUICK, {half.name: ["wrong"]}).run(SMALL)
    assert measured.peers[half.name].wrong
    assert set(measured.peers[half.name].notes) == {"wrong"}


def test_a_worker_that_sleeps_is_ended(client, tmp_path):
    problem.make(SMALL.spec, tmp_path)
    with pytest.raises(WorkerError, match="did not answer within 3 s"):
        client("Asleep", timeout=3.0).ask("prepare", key=SMALL.spec.key(), folder=str(tmp_path))


def test_script_from_layers_to_json_and_command(tmp_path):
    path, results = tmp_path / "layers.csv", tmp_path / "results.json"
    rows = ("tiny_one,1,4,5,6,3,4,3x3x3,1x1x1,1x1x1,1,same", "other,1,4,4,4,1,1,1x1x1,1x1x1,1x1x1,1,same")
    path.write_text("\n".join((HEAD, *rows)) + "\n")
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "--layers", str(path), "--filter", "tiny"]
    command += ["--ours", "oracle", "--peers", "oracle", "--rounds", "1", "--min-time", "0.001", "--repro"]
    command += ["--json", str(results), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny_one" in done.stdout
    assert "against the fastest" in done.stdout
    content = json.loads(results.read_text())
    assert [entry["layer"] for entry in content["rows"]] == ["tiny_one"]
    key = content["rows"][0]["spec"]
    (again,) = [line for line in done.stdout.splitlines() if line.startswith("python scripts/bench.py")]
    assert f"--spec {key} --peers oracle --threads 1" in again
    assert content["setting"]["versions"]["numpy"] == np.__version__


def test_a_wrong_result_of_ours_fails_the_run(client, capsys):
    client("Wrong")  # sets the search path
    arguments = ["--spec", SMALL.spec.key(), "--peers", "oracle", "--rounds", "1", "--min-time", "0.001"]
    assert cli.main([*arguments, "--ours", "bench_fakes:Wrong"]) == 1
    captured = capsys.readouterr()
    assert "wrong*" in captured.out
    assert "WRONG, relative error" in captured.err


def test_our_own_peers_are_no_measure() -> None:
    one = row("a", 1e-3, torch=4e-3, jax=3e-3, default=2e-3)
    assert one.fastest == "jax"
    assert one.ratio() == pytest.approx(3)
    assert one.ratio("default") == pytest.approx(2)
    assert one.ratio(of="default") == pytest.approx(1.5)
    assert one.ratio(of="missing") is None
    (untuned,) = [s for s in stats.closing([one], ["torch", "jax", "default"]) if "default against" in s.title]
    assert untuned.mean == pytest.approx(1.5)
    alone = row("a", 1e-3, default=2e-3)
    assert (alone.fastest, alone.ratio()) == ("default", pytest.approx(2))


def test_tuned_is_compared_with_default(monkeypatch, tmp_path, capsys):
    """The two differ by records alone: here by one that takes another tile."""
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TVM_CONV3D_LOGS", str(tmp_path / "logs"))
    target = host_target(1)
    plan = default_plan(SMALL.spec, target, exact=True)
    other = replace(plan.variant, columns=2)
    fields = {"algorithm": plan.algorithm, "variant": asdict(other), "decisions": dict(plan.decisions)}
    about = {"isa": instruction_set(target), "cpu": "a CPU", "date": "2026-01-31", "versions": {}}
    kept = records.Record(SMALL.spec.key(), 1, **fields, seconds=1e-3, default_seconds=2e-3, **about)
    path = tmp_path / "logs" / target_key(target) / records.FILE_NAME
    records.merge(path, [kept])
    written = tmp_path / "run.json"
    options = ["--spec", SMALL.spec.key(), "--compare", "default,tuned", "--threads", "1", "--rounds", "1"]
    assert cli.main([*options, "--min-time", "0.001", "--json", str(written), "--repro"]) == 0
    (found,) = json.loads(written.read_text())["rows"]
    assert found["ours"]["origin"] == f"record of {target_key(target)}"
    assert found["peers"]["default"]["origin"] == "default"
    assert "--compare default,tuned" in capsys.readouterr().out


def test_the_usual_layers_are_taken_where_none_is_named(tmp_path, capsys):
    layers = tmp_path / "layers.csv"
    layers.write_text(f"{HEAD}\ntiny_one,1,4,5,6,3,4,3x3x3,1x1x1,1x1x1,1,same\n")
    options = ["--peers", "none", "--ours", "oracle", "--rounds", "1", "--min-time", "0.001"]
    assert cli.main(options, usual_layers=layers) == 0
    assert "tiny_one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No layer to run"),
        (["--spec", "nonsense"], "Not a spec key"),
        (["--random", "1", "--peers", "caffe"], "A peer must be one of"),
        (["--random", "1", "--modes", "torch"], "--modes takes NAME=VALUE"),
        (["--layers", "missing.csv"], "missing.csv"),
        (["--random", "1", "--compare", "tuned"], "--compare takes two peers"),
        (["--random", "1", "--compare", "tuned,caffe"], "A peer must be one of"),
    ],
)
def test_bad_options_are_explained(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_pictures_and_page(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row("a", 1e-3, torch=2e-3, jax=None), row("b", 2e-3, torch=None)]
    written = plots.draw(tmp_path, rows, ["torch", "jax"], Roof(200.0, 20.0))
    assert [path.name for path in written] == ["families.png", "roofline.png"]
    assert all(path.stat().st_size > 1000 for path in written)
    where = report.setting(2, 5, 0.2, {"torch": "2"})
    page = report.page(where, rows, ["torch", "jax"], ["families.png"], "python scripts/bench.py")
    assert "| a | " in page
    assert "![families](families.png)" in page
    assert plots.bytes_moved(rows[0].layer.spec) == 4 * (2 * 9**3 * 32 * 2 + 27 * 32 * 32)


@pytest.mark.parametrize("library", ["torch", "openvino", "onnxruntime", "tensorflow", "jax"])
def test_peers_compute_what_they_are_asked(library):
    pytest.importorskip(library)
    oracle, peer = Client("oracle", 1), Client(library, 1)
    comparison = Comparison(oracle, [peer], QUICK)
    try:
        for spec in SPECS:
            timing = comparison.run(Layer("layer", spec, "same")).peers[library]
            assert not timing.wrong, timing.notes
            # A library may refuse a layer, if it says why.
            assert timing.seconds is not None or timing.notes
    finally:
        oracle.close()
        peer.close()
