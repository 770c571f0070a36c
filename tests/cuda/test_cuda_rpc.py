"""Tuning for a GPU behind TVM's RPC tracker: a server with a GPU that is the CPU, and everything refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cuda_checks import default_plans
from rpc_device import tracked
from tvm_conv3d.engine import build
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

pytest.importorskip("tornado", reason="TVM's RPC needs tornado")

SPEC = Conv3DSpec(1, (3, 4, 5), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HELPERS))
        with tracked(tmp_path_factory.mktemp("device"), [str(HELPERS / "cuda_rpc_server.py")]) as found:
            yield found.port


def test_a_remote_gpu_measures(port: int) -> None:
    from tvm_conv3d.tuning.gpu_rpc import GpuRpcMeasurer
    from tvm_conv3d.tuning.measure import Request
    from tvm_conv3d.tuning.measurement_host import MeasurementHost
    from tvm_conv3d.tuning.workers import WorkerError

    measurer = GpuRpcMeasurer("127.0.0.1", port, "board", ARCHITECTURES["sm_80"])
    assert measurer.device == "fake"
    target = resolve("cuda:sm_80", 1)
    plans = default_plans([SPEC, replace(SPEC, dtype="float16", channels=16, filters=16)])
    with MeasurementHost(target, builders=1, measurer=measurer, device=measurer.device) as host:
        for plan, bound in zip(plans, (2e-6, 1e-3), strict=True):
            assert host.error(plan) < bound
        (trial,) = host.try_plans(plans[:1], cutoff_seconds=0.0)
        assert trial.seconds is not None and trial.seconds > 0, trial.note
        broken = replace(build.compile_plan(plans[0], target), object_code=b"no code at all")
        with pytest.raises(WorkerError, match="on the device: "):
            measurer.ask(Request("error", "cuda", ((plans[0], broken),)), 60)
        # another session serves the next request
        assert host.error(plans[0]) < 2e-6


def test_a_remote_gpu_of_another_architecture(port: int) -> None:
    from tvm_conv3d.tuning.gpu_rpc import GpuRpcMeasurer

    with pytest.raises(
        RuntimeError, match=r"'board': GPU 0 \(fake\) has compute capability 8.0: it can't run code for"
    ):
        GpuRpcMeasurer("127.0.0.1", port, "board", ARCHITECTURES["sm_90"])


def test_the_usual_server_of_tvm_is_refused(tmp_path: Path) -> None:
    from tvm_conv3d.tuning.gpu_rpc import GpuRpcMeasurer

    words = r"python -m tvm_conv3d\.tuning\.gpu_rpc --tracker"
    with (
        tracked(tmp_path, ["-m", "tvm.exec.rpc_server", "--port-end=65535"]) as found,
        pytest.raises(RuntimeError, match=words),
    ):
        GpuRpcMeasurer("127.0.0.1", found.port, "board", ARCHITECTURES["sm_80"])


def test_the_architecture_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("xgboost", "rich"):
        pytest.importorskip(package)
    from tvm_conv3d.tuning import command

    assert command.main(["--spec", SPEC.key(), "--rpc", "127.0.0.1:1"], kind="cuda") == 2
    assert "--target cuda:sm_90" in capsys.readouterr().err


def test_a_layer_is_tuned_on_a_remote_gpu(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command: all trials are built and measured."""
    for package in ("xgboost", "rich"):
        pytest.importorskip(package)
    from tvm_conv3d.tuning import command

    spec = replace(SPEC, channels=2, filters=3, size=(2, 3, 4))
    where = ["--target", "cuda:sm_80", "--rpc", f"127.0.0.1:{port}", "--rpc-key", "board"]
    options = ["--trials", "3", "--out", str(tmp_path), "--plain"]
    assert command.main(["--spec", spec.key(), *where, *options], kind="cuda") == 0
    printed = capsys.readouterr().out
    assert "3 trials in" in printed
    (row,) = (line for line in printed.splitlines() if "window" in line)
    assert [cell.strip() for cell in row.split("│")][-3:-1] == ["3", "0"]
