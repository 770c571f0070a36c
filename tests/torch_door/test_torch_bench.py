"""The benchmark of networks with PyTorch: references, modes, kinds of operators, a run from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import bench_networks  # noqa: E402  (needs torch)
import tvm_conv3d.torch as ours  # noqa: E402
from tvm_conv3d.bench.networks import expected, modes, operators, worker, zoo  # noqa: E402
from tvm_conv3d.bench.networks.results import KINDS, MODES  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = "bench_networks:tiny"
X = torch.randn(bench_networks.SHAPE, generator=torch.Generator().manual_seed(0))


def task(*names: str, network: str = TINY, **more: Any) -> worker.Task:
    return worker.Task(network, list(names), rounds=2, threads=torch.get_num_threads(), limit=60.0, **more)


# What outputs are compared with


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 1},
        {"padding": "same", "dilation": (2, 2, 3)},
        {"stride": (3, 2, 1), "padding": (2, 0, 1), "groups": 2},
        {"padding": 2, "padding_mode": "circular", "stride": 2, "bias": False},
    ],
)
def test_convolutions_in_slabs(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    conv = torch.nn.Conv3d(2, 4, (3, 2, 3), **arguments)
    wanted = conv.double()(X.double())
    calls: list[int] = []
    original = expected.functional.conv3d
    monkeypatch.setattr(expected.functional, "conv3d", lambda *given: calls.append(1) or original(*given))
    for slab, count in ((1, wanted.shape[2]), (1 << 28, 1)):
        monkeypatch.setattr(expected, "SLAB", slab)
        calls.clear()
        torch.testing.assert_close(expected._in_float64(conv)(X.double()), wanted)
        assert len(calls) == count


def test_float64_where_memory_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = zoo.make(TINY)
    kind, (right,) = expected.outputs(module, x)
    assert (kind, right.dtype) == ("float64", torch.float64)
    assert 0 < expected.error(module(x), [right]) < 1e-6
    monkeypatch.setattr(expected, "_free_bytes", lambda: 0)
    kind, (right,) = expected.outputs(module, x)
    assert (kind, right.dtype) == ("float32", torch.float32)


def test_errors_of_outputs() -> None:
    right = [torch.tensor([3.0, 4.0]), torch.tensor([0.0])]
    assert expected.error({"a": right[0] + torch.tensor([0.5, 0.0]), "b": right[1]}, right) == pytest.approx(0.1)
    assert expected.error(right, right) == 0
    assert expected.error([right[0]], right) == math.inf
    assert expected.error([right[0], right[1][None]], right) == math.inf
    assert expected.error([right[0], torch.tensor([math.nan])], right) == math.inf


# Modes


def test_modes_compute_the_network_and_leave_it_alone() -> None:
    module, x = zoo.make(TINY)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    right = module(x)
    for mode in ("eager", "eager_cl", "accelerate"):
        prepared = modes.prepare(mode, module, x)
        with torch.inference_mode(), prepared.first():
            torch.testing.assert_close(prepared.run(), right, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert module[0][0].weight.is_contiguous()


def test_wrong_numbers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modes.prepare

    def prepare(mode: str, module: Any, x: Any) -> modes.Prepared:
        if mode == "compile":
            raise ValueError("no compiler")
        factor = {"eager": 1.0, "accelerate": math.nan, "compiled": 1.01}[mode]
        return modes.Prepared(lambda: original("eager", module, x).run() * factor)

    monkeypatch.setattr(modes, "prepare", prepare)
    found = worker.measure(task("eager", "compile", "accelerate", "compiled"))
    assert found.reference == "float64" and found.shape == bench_networks.SHAPE
    assert len(found.modes["eager"].seconds) == 2 and 0 < found.modes["eager"].error < 1e-6
    assert found.modes["compile"].note == "ValueError: no compiler"
    for mode, error in (("accelerate", "inf"), ("compiled", "0.01")):
        timing = found.modes[mode]
        assert timing.note == f"WRONG, relative error {error}: not timed" and not timing.seconds
    accelerate, compiled = found.failures()
    assert accelerate.startswith(f"{TINY}, accelerate: WRONG") and compiled.startswith(f"{TINY}, compiled: WRONG")


def test_all_graphs_are_compiled_however_many_there_are() -> None:
    ours.reset_counters()
    with torch._dynamo.config.patch(cache_size_limit=8):
        found = worker.measure(task("compiled", network="bench_networks:breaking"))
    # eleven convolutions, in each call
    assert len(found.modes["compiled"].seconds) == 2
    assert ours.counters() == ours.Counters(11 * (worker.WARM_UP + 2), {})


def test_what_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError, match=r"more than 0\.05 s"), worker.limited(0.05):
        time.sleep(10)
    with worker.limited(0.05):
        pass
    time.sleep(0.1)


def test_a_backend_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "BACKEND", "no_such_backend")
    found = worker.measure(task("eager", "compiled"))
    timing = found.modes["compiled"]
    assert not timing.available and timing.note == "not available: torch.compile has no backend 'no_such_backend'"
    assert found.failures() == []


def test_networks_of_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.video", None)
    found = worker.measure(task("eager", network="r3d_18"))
    assert not found.available and found.modes == {} and "torchvision" in found.note


@pytest.mark.parametrize("name", [name for name in zoo.NETWORKS if "_18" not in name])
def test_networks_of_monai_can_be_made(name: str) -> None:
    pytest.importorskip("monai.networks.nets", reason="monai is not installed beside torch")
    if name in ("unetr", "swinunetr"):
        pytest.importorskip("einops", reason="einops is not installed beside torch")
    # that one reads numbers of tensors while it is made
    with torch.device("cpu" if name == "swinunetr" else "meta"):
        module, shape = zoo.NETWORKS[name]()
    kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    assert len(shape) == 5 and sum(isinstance(part, kinds) for part in module.modules()) > 10


# Kinds of operators


def event(name: str, seconds: float, parent: Any = None, concrete: Any = None) -> Any:
    return SimpleNamespace(name=name, self_cpu_time_total=seconds * 1e6, cpu_parent=parent, concrete_inputs=concrete)


def test_time_by_kind() -> None:
    region = event("Torch-Compiled Region: 0/0", 0.5)
    conv = event("aten::convolution", 1.0, region, [[], False, 1])
    up = event("tvm_conv3d::fused_convolution", 2.0, None, [[], True, 1])
    norm = event("aten::instance_norm", 0.25)
    inside = event("aten::native_batch_norm", 0.5, norm)
    events = [region, conv, up, norm, inside, event("aten::copy_", 0.125, inside), event("aten::relu", 4.0, conv)]
    events += [event("aten::add_", 0.5), event("aten::view", 8.0), event("tvm_conv3d::normalization_", 1.0)]
    found = operators.summed(events, 10.0, 2)
    assert found == dict.fromkeys(KINDS, 0.0) | {
        "convolution": 2.5,
        "transposed": 1.0,
        "norm": 0.875,
        "copies": 0.0625,
        "add": 0.25,
        "rest": pytest.approx(10 - 2.5 - 1 - 0.875 - 0.0625 - 0.25),
    }


@pytest.mark.parametrize("mode", ["eager", "accelerate"])
def test_kinds_of_a_network(mode: str) -> None:
    prepared = modes.prepare(mode, *zoo.make(TINY))
    with torch.inference_mode():
        prepared.run()
        found = operators.by_kind(prepared.run, 2)
    assert list(found) == list(KINDS)
    assert all(found[kind] > 0 for kind in ("convolution", "transposed", "pool/upsample", "rest"))
    # ours is folded into the convolution
    assert (found["norm"] > 0) == (mode == "eager")
    assert found["linear"] == found["concatenation"] == 0


# From end to end


def test_script(tmp_path: Path) -> None:
    path, page = tmp_path / "run.json", tmp_path / "networks.md"
    command = [sys.executable, str(ROOT / "scripts" / "bench_networks.py"), "--networks", TINY, "--rounds", "2"]
    command += ["--modes", "eager,accelerate", "--profile", "--memory", "--cold", "--threads", "1"]
    command += ["--json", str(path), "--page", str(page)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/helpers")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "geometric mean" in done.stdout and "peak resident MiB" in done.stdout
    found = json.loads(path.read_text())["networks"][TINY]
    assert list(found["modes"]) == ["eager", "accelerate"] and found["reference"] == "float64"
    for timing in found["modes"].values():
        assert len(timing["seconds"]) == 2 and min(timing["seconds"]) > 0 and timing["first_call"] > 0
        assert timing["error"] < 1e-5 and timing["kinds"]["convolution"] > 0 and timing["memory"] > 1 << 26
    text = page.read_text()
    assert "first call, nothing cached" in text
    assert f"| {TINY} | 1x2x8x8x8 | " in text and "scripts/bench_networks.py --networks" in text
    assert set(MODES) >= set(found["modes"])
