"""The script that fits the cost model to the trials of tuning."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules.llvm.costs import table
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target

GHZ = 2.0

#: Of the journals; not what this process would use.
THREADS = 3


@pytest.fixture
def script() -> ModuleType:
    pytest.importorskip("scipy")
    pytest.importorskip("xgboost")
    path = Path(__file__).resolve().parents[2] / "scripts" / "fit_costs.py"
    spec = importlib.util.spec_from_file_location("fit_costs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["fit_costs"] = module
    spec.loader.exec_module(module)
    return module


def test_known_costs_are_found_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials that take what a model with other costs says, one of them disturbed."""
    from tvm_conv3d.tuning.journal import Journal
    from tvm_conv3d.tuning.measurement_host import Trial

    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path))
    target = host_target(THREADS)
    traits = cpu_traits(target)
    in_force = table.table_of(traits).cycles
    costs = {**in_force["winograd"], "product_2": 1.5, "transform": 0.7, "task": 5000.0}
    for size, channels in (((16, 28, 28), 64), ((8, 28, 28), 128), ((8, 14, 14), 256), ((2, 7, 7), 512)):
        spec = Conv3DSpec(1, size, channels, channels, (3, 3, 3), pads=(Pads(1, 1),) * 3)
        trials = []
        for variant in algorithms("llvm")["winograd"].variants(spec, traits):
            amounts = algorithms("llvm")["winograd"].costs.amounts(canonicalize(spec), traits, variant, {"unroll": 1})
            seconds = sum(costs[name] * amount for name, amount in amounts.items()) / (GHZ * 1e9)
            trials.append(Trial(Plan(spec, "winograd", variant, {"unroll": 1}), seconds))
        trials[1] = Trial(trials[1].plan, 3 * trials[1].seconds)
        trials.append(Trial(Plan(spec, "winograd", variant, {"unroll": 2}), None, "run: it failed"))
        Journal(spec, target).add(trials)
    samples = script.read(target, GHZ)
    found = script.fit(samples, in_force, {})
    for sample in samples:
        expected = sum(costs[name] * amount for name, amount in sample.amounts.items())
        assert sample.estimate(found) == pytest.approx(expected, rel=0.03)
    assert {name: found[name] for name in found if name != "winograd"} == {
        name: in_force[name] for name in in_force if name != "winograd"
    }
    monkeypatch.setattr(table, "_FOLDER", tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["fit_costs.py", "fit", "--write", "--ratios", "--ghz", str(GHZ), "--threads", str(THREADS)]
    )
    script.main()
    assert "fitted" in capsys.readouterr().out
    written = table.Table(**json.loads((tmp_path / f"{traits.microarchitecture}.json").read_text()))
    for sample in samples:
        assert sample.estimate(written.cycles) == pytest.approx(sample.estimate(found), rel=0.02)
    assert "--threads 3" in written.command


def test_default_plans_are_measured(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each algorithm's default once; what was measured is not measured again."""
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path))
    target, spec = host_target(2), Conv3DSpec(1, (4, 14, 14), 16, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3)
    script.measure(target, [spec])
    samples = script.read(target, GHZ)
    assert {s.algorithm for s in samples} == {"winograd", "direct"}
    assert all(s.layer == spec.key() and s.cycles > 1000 for s in samples)
    (file,) = script.folder_of(target, "costs").iterdir()
    before = file.stat().st_mtime_ns
    script.measure(target, [spec])
    assert file.stat().st_mtime_ns == before


def test_plans_beside_the_defaults_of_named_problems_are_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--others` adds Winograd's plans of fewer weights, `--specs` problems by their keys."""
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path))
    spec, keys = Conv3DSpec(1, (4, 8, 8), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3), tmp_path / "keys"
    keys.write_text(f"{spec.key()}\n{spec.key()}\n")
    named = ["measure", "--threads", "2", "--seeds", "--specs", str(keys), "--others"]
    monkeypatch.setattr("sys.argv", ["fit_costs.py", *named])
    script.main()
    samples = script.read(host_target(2), GHZ)
    assert {s.layer for s in samples} == {spec.key()}
    assert [s.algorithm for s in samples].count("direct") == 1
    assert [s.algorithm for s in samples].count("winograd") > 1


def test_without_trials_it_says_what_to_do(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_CONV3D_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["fit_costs.py", "fit", "--threads", "2"])
    with pytest.raises(SystemExit, match="There are no trials"):
        script.main()
