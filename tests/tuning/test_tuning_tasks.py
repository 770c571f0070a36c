"""What is tuned, and where: models of Keras, and devices behind an RPC tracker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rpc_device import Tracked, free_port, tracked
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning import tasks

SPEC = Conv3DSpec(1, (4, 12, 12), 8, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))


def test_layers_of_a_file(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "scripts" / "layers.csv"
    found = tasks.from_csv(path)
    assert len(found) > 10
    assert len(tasks.distinct([*found, *found])) == len(tasks.distinct(found)) <= len(found)
    assert tasks.from_key(SPEC.key()).spec == SPEC


def test_layers_of_a_model(tmp_path: Path) -> None:
    """In a process of its own, as a backend of Keras is chosen once a process."""
    for package, reason in (("keras", "reading models needs Keras"), ("torch", "Keras needs a backend")):
        # not importorskip: a Keras without its usual backend can't be imported here
        if importlib.util.find_spec(package) is None:
            pytest.skip(reason)
    code = """
import sys
from pathlib import Path
import keras
from tvm_conv3d.tuning import tasks

size = (6, 10, None, 3)
x = keras.Input(size)
y = keras.layers.Conv3D(8, 3, padding="same", activation="relu", name="first")(x)
y = keras.layers.MaxPooling3D((1, 2, 2))(y)
y = keras.layers.Conv3D(4, (1, 3, 3), strides=(1, 2, 2), name="second")(y)
model = keras.Model(x, y)
model.save("model.keras")
for task in tasks.from_model(Path("model.keras"), (2, 6, 10, 12, 3)):
    print(task.name, task.spec.key())
try:
    tasks.from_model(Path("model.keras"))
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    first, second, error = done.stdout.splitlines()
    assert first == "first n2_i6x10x12x3_o8_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_bias_relu"
    assert second == "second n2_i6x5x6x8_o4_k1x3x3_s1x2x2_d1x1x1_p0.0x0.0x0.0_g1_ndhwc_float32_bias_linear"
    assert "open sizes" in error


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracked]:
    """A tracker and one device, on this machine."""
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado")
    if shutil.which("g++") is None:
        pytest.skip("linking for a remote device needs a C++ compiler")
    with tracked(tmp_path, ["-m", "tvm.exec.rpc_server", "--port-end=65535"]) as both:
        yield both


def test_a_remote_device_measures(tracker: Tracked) -> None:
    from tvm_conv3d.tuning.measurement_host import MeasurementHost
    from tvm_conv3d.tuning.rpc import RpcMeasurer

    target = resolve(None, 2)
    measurer = RpcMeasurer("127.0.0.1", tracker.port, "board", 2)
    with MeasurementHost(target, builders=1, measurer=measurer, device=measurer.device) as host:
        for spec in (SPEC, replace(SPEC, direction="weight_gradient", post_ops=())):
            plan = default_plan(spec, target, exact=True)
            (trial,) = list(host.try_plans([plan]))
            assert trial.seconds is not None, trial.note
            assert 0 < trial.seconds < 1
            assert host.error(plan) < 2e-6
        assert all(seconds < 1 for seconds in host.measure_interleaved([plan, plan]))


def test_a_device_that_goes_ends_the_run(tracker: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for ever, and no candidate is blamed."""
    import signal

    from tvm_conv3d.tuning import rpc
    from tvm_conv3d.tuning.measurement_host import MeasurementHost
    from tvm_conv3d.tuning.workers import NoWorkerError

    target = resolve(None, 2)
    plan = default_plan(SPEC, target, exact=True)
    measurer = rpc.RpcMeasurer("127.0.0.1", tracker.port, "board", 2)
    monkeypatch.setattr(rpc, "_PATIENCE", 2)
    with MeasurementHost(target, builders=1, measurer=measurer, device=measurer.device) as host:
        assert next(host.try_plans([plan])).seconds
        os.killpg(tracker.device, signal.SIGKILL)
        with pytest.raises(NoWorkerError, match="No device 'board'"):
            next(host.try_plans([plan]))


def test_no_tracker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tornado", reason="TVM's RPC needs tornado")
    from tvm_conv3d.tuning import rpc

    # TVM itself tries for a minute
    monkeypatch.setattr(rpc, "_PATIENCE", 1)
    with pytest.raises(RuntimeError, match="No device 'board'"):
        rpc.RpcMeasurer("127.0.0.1", free_port(), "board", 2)
