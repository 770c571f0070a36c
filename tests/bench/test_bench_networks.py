"""The benchmark of networks, its parts that need no PyTorch; nothing here looks at a time."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tvm_conv3d.bench import report
from tvm_conv3d.bench.networks import command, pages, picture, results
from tvm_conv3d.bench.networks.results import KINDS, Network, Run, Timing


def network(name: str, **milliseconds: float | None) -> Network:
    modes = {
        mode: Timing([ms / 1e3] * 3, 1e-6, 2.0) if ms is not None else Timing(note="no such instruction")
        for mode, ms in milliseconds.items()
    }
    return Network(name, (1, 1, 8, 8, 8), "2026-01-31 10:00 UTC", "float64", modes)


def made(*networks: Network) -> Run:
    where = report.setting(2, 3, 0.0, {"torch": "2"})
    return Run(where, {"OMP_NUM_THREADS": "2"}, ["python a"], {each.name: copy.deepcopy(each) for each in networks})


BOTH = network("both", eager=30.0, compile=20.0, accelerate=10.0, compiled=8.0)
ONE = network("one", eager=9.0, eager_cl=18.0, accelerate=4.5, compiled=None)
NONE = Network("none", date="2026-01-31 11:00 UTC", note="not available: no such library", available=False)


def test_ratios_take_the_fastest_mode_of_either() -> None:
    assert BOTH.fastest(results.TORCH_MODES) == "compile"
    assert BOTH.ratio() == pytest.approx(2.5)
    assert BOTH.ratio("accelerate") == pytest.approx(2)
    assert ONE.ratio() == pytest.approx(2)
    assert ONE.ratio("compiled") is None and NONE.ratio() is None
    assert network("ours alone", accelerate=1.0).ratio() is None


def test_closing_lines() -> None:
    better, accelerate, compiled = results.closing([BOTH, ONE, NONE])
    assert better.mean == pytest.approx(5**0.5) and (better.count, better.least_name) == (2, "one")
    assert accelerate.mean == pytest.approx(2) and compiled.count == 1


def test_failures_are_ours_alone() -> None:
    assert ONE.failures() == ["one, compiled: no such instruction"]
    assert network("theirs", eager=None, accelerate=1.0).failures() == []
    absent = network("absent", eager=1.0)
    absent.modes["compiled"] = Timing(note="not available: it is not there", available=False)
    assert absent.failures() == NONE.failures() == []
    assert Network("crashed", note="status 7").failures() == ["crashed: status 7"]


def test_a_file_holds_the_run(tmp_path: Path) -> None:
    run = made(BOTH, ONE, NONE)
    run.networks["both"].modes["compiled"].kinds = dict.fromkeys(KINDS, 0.5)
    path = tmp_path / "run.json"
    run.write(path)
    assert Run.read(path) == run


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"networks": {"a": {"color": 1}}}', '{"networks": []}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is no file of this benchmark's --json"):
        Run.read(path)


def test_tables() -> None:
    head, both, one, none = pages.ratios([BOTH, ONE, NONE])
    assert both == ["both", "1x1x8x8x8", "20.0", "compile", "10.0", "8.0", "2.50", "1.0e-06", "1.0e-06"]
    assert one[2:7] == ["9.0", "eager", "4.5", "-", "2.00"]
    assert len(head) == len(none) and set(none[1:]) == {"-"}
    assert pages.by_mode([BOTH, ONE], pages.first_call)[0][1:] == [m for m in results.MODES if m != "compile_cl"]
    assert pages.first_calls_title([replace(BOTH, cold=True)]).endswith("nothing cached")
    assert pages.first_calls_title([replace(BOTH, cold=True), ONE]).endswith("caches as they were")
    assert pages.notes([ONE, NONE]) == ["one, compiled: no such instruction", "none: not available: no such library"]
    assert pages.kinds([ONE]) == [["network", "mode", *KINDS, "sum"]]


def test_bars_are_as_long_as_the_ratios() -> None:
    lines = pages.bars([BOTH, ONE, NONE, network("slow", eager=1.0, accelerate=4.0)])
    assert [line.split()[-1] for line in lines] == ["2.50", "2.00", "0.25"]
    assert [line.count("#") for line in lines] == [30, 24, 3]
    assert len({line.index("|") for line in lines}) == 1


def test_page() -> None:
    run = made(BOTH, ONE, NONE)
    run.networks["one"].modes["accelerate"].memory = 300 << 20
    text = pages.page(run, ["networks.png"])
    assert "2026-01-31 10:00 UTC to 2026-01-31 11:00 UTC" in text and run.setting.cpu in text
    assert "medians of 3 interleaved rounds" in text and "OMP_NUM_THREADS=2 set in the environment" in text
    assert "    python a\n" in text and "![networks](networks.png)" in text
    assert "| accelerate, against torch's fastest mode | 2.00 | 2 | 2.00 " in text
    assert "| one | - | - | - | 300 | - |" in text
    assert "- none: not available: no such library" in text
    assert "by kind of operator" not in text
    run.networks["one"].modes["accelerate"].kinds = dict.fromkeys(KINDS, 0.5)
    assert "| one | accelerate | 500 |" in pages.page(run, [])


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for networks in ([BOTH, ONE, NONE], [NONE]):
        assert picture.draw(tmp_path, networks).stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "alexnet"], "A network must be one of r3d_18"),
        (["--modes", "eager,fast"], "A mode must be one of eager.*Received: 'fast'"),
        (["--networks", "none"], "Name it: --json FILE"),
    ],
)
def test_bad_options_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and not captured.out


def test_a_page_is_made_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path, page = tmp_path / "run.json", tmp_path / "docs" / "networks.md"
    run = made(BOTH, ONE)
    run.write(path)
    assert command.main(["--networks", "none", "--json", str(path), "--page", str(page)]) == 0
    assert page.read_text() == pages.page(run, ["networks.png"])
    assert (page.parent / "networks.png").exists()
    assert "torch's fastest ms" in capsys.readouterr().out
    assert Run.read(path) == run


def test_runs_of_other_conditions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    run = made(BOTH)
    replace(run, setting=replace(run.setting, cpu="another")).write(path)
    assert command.main(["--json", str(path)]) == 2
    assert "holds a run with other processor: another, now" in capsys.readouterr().err


def test_a_process_that_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1] / "helpers"))
    path = tmp_path / "run.json"
    pytest.importorskip("torch", reason="torch is not installed")
    arguments = ["--modes", "eager", "--rounds", "1", "--json", str(path)]
    assert command.main(["--networks", "bench_networks:crashing", *arguments]) == 1
    assert "its process ended with status 7" in capsys.readouterr().out
    assert command.main(["--networks", "bench_networks:broken", *arguments]) == 0
    assert "not available: ImportError: no such library" in capsys.readouterr().out
    found = Run.read(path)
    assert list(found.networks) == ["bench_networks:crashing", "bench_networks:broken"]
    assert len(found.commands) == 2
