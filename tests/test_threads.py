"""Numbers of threads, several Python threads in one layer, and forked children."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tvm_conv3d import Conv3D, get_num_threads, runtime, set_num_threads
from tvm_conv3d.plan import Plan
from tvm_conv3d.reference import relative_error
from tvm_conv3d.targets import available_cpus

X = np.random.default_rng(0).standard_normal((2, 8, 12, 12, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def _restore() -> object:
    before = get_num_threads()
    yield
    set_num_threads(before)


def test_all_cpus_by_default() -> None:
    code = "import tvm_conv3d; print(tvm_conv3d.get_num_threads())"
    environment = {k: v for k, v in os.environ.items() if k != "TVM_NUM_THREADS"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(out.stdout) == available_cpus()


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", None])
def test_bad_counts(count: object) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        set_num_threads(count)  # type: ignore[arg-type]


def test_the_result_does_not_depend_on_the_count() -> None:
    layer = Conv3D(24, 3, padding="same", activation="relu")
    expected = layer(X)
    for count in (1, 2, 3, 7, 2):
        set_num_threads(count)
        assert get_num_threads() == count
        # plans differ, and so does their rounding
        assert relative_error(layer(X), expected) < 2e-5


def test_the_count_is_obeyed() -> None:
    """CPU seconds of a call against its wall seconds, in a process of its own."""
    code = """
import sys, time, numpy as np, tvm_conv3d
tvm_conv3d.set_num_threads(1)
layer = tvm_conv3d.Conv3D(64, 3)
x = np.ones((1, 16, 40, 40, 64), np.float32)
layer(x)
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(5): layer(x)
print((time.process_time() - cpu) / (time.perf_counter() - wall))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1.2


def test_a_wish_during_a_first_call_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call compiles for seconds, and then makes its thread's pool: it must not write an older count back."""
    real = runtime.make_plan

    def meanwhile(*arguments: Any, **options: Any) -> Plan:
        set_num_threads(1)
        return real(*arguments, **options)

    set_num_threads(2)
    monkeypatch.setattr(runtime, "make_plan", meanwhile)
    caller = threading.Thread(target=Conv3D(8, 3), args=(X,))
    caller.start()
    caller.join()
    assert get_num_threads() == 1


def test_several_threads_call_one_layer() -> None:
    layer = Conv3D(24, 3, padding="same", activation="relu")
    layer.build(X.shape)
    shapes = [(1 + i % 2, 8, 12, 6 + i % 3, 16) for i in range(24)]
    inputs = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(layer, inputs))
        for result, x in zip(together, inputs, strict=True):
            # the first call of a further size may have another plan
            assert relative_error(result, layer(x)) < 2e-5
        together = list(pool.map(layer, inputs))
    for result, x in zip(together, inputs, strict=True):
        np.testing.assert_array_equal(result, layer(x))


def test_the_default_is_not_taken_for_a_wish() -> None:
    """What is put into the environment for TVM to read does not outlive a change of the process's CPUs."""
    code = """
import os, numpy as np, tvm_conv3d
tvm_conv3d.Conv3D(4, 1)(np.ones((1, 2, 2, 2, 1), "float32"))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(tvm_conv3d.get_num_threads())
"""
    environment = {k: v for k, v in os.environ.items() if k != "TVM_NUM_THREADS"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(out.stdout) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_child_forked_beside_a_busy_thread_convolves() -> None:
    code = """
import os, threading, warnings, numpy as np, tvm_conv3d
warnings.simplefilter("ignore")
layer = tvm_conv3d.Conv3D(32, 3, padding="same")
x = np.ones((1, 8, 14, 14, 32), np.float32)
layer(x)
weights = layer.get_weights()
done = threading.Event()
def work():
    while not done.is_set():
        layer.set_weights(weights)
        layer(x)
threading.Thread(target=work, daemon=True).start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        layer(x)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
done.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_child_convolves() -> None:
    code = """
import os, warnings, numpy as np, tvm_conv3d
warnings.simplefilter("ignore")
layer = tvm_conv3d.Conv3D(24, 3)
x = np.ones((1, 8, 12, 12, 16), np.float32)
expected = layer(x)
child = os.fork()
if child == 0:
    os._exit(0 if (layer(x) == expected).all() else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_process_may_end_beside_busy_daemon_threads() -> None:
    """Python unwinds such threads' stacks, which C++ answers with SIGABRT: two runs of three did."""
    code = """
import threading, time, numpy as np, tvm_conv3d
layer = tvm_conv3d.Conv3D(32, 3, padding="same")
x = np.ones((1, 8, 14, 14, 32), np.float32)
layer(x)
def work():
    while True:
        layer(x)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.02)
"""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
