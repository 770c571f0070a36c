"""Numbers of threads, several Python threads in one layer, and forked children."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from processes import run
from tvm_conv3d import Conv3D, get_num_threads, set_num_threads
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference.oracle import relative_error
from tvm_conv3d.runtime import executor
from tvm_conv3d.target.cpu import available_cpus

X = np.random.default_rng(0).standard_normal((2, 8, 12, 12, 16)).astype(np.float32)


#: Begins a process as users have it: with torch or without, which TVM imports where it is installed.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
WITH_TORCH = "import torch\n"


@pytest.fixture(params=[WITHOUT_TORCH, WITH_TORCH], ids=["pool", "openmp"])
def beginning(request: pytest.FixtureRequest) -> str:
    """The first lines of a process, in which loops run on our pool or on torch's OpenMP threads."""
    if request.param == WITH_TORCH:
        pytest.importorskip("torch")
    return request.param


def test_all_cpus_by_default(beginning: str) -> None:
    code = "import tvm_conv3d; print(tvm_conv3d.get_num_threads())"
    assert int(run(beginning + code)) == available_cpus()


def test_short_lived_threads_leave_nothing_behind(beginning: str) -> None:
    """TVM's pools stayed: 203 threads after these, and a limit of tasks ended all further calls."""
    code = """
import os, threading, numpy as np, tvm_conv3d
from concurrent.futures import ThreadPoolExecutor
layer, x = tvm_conv3d.Conv3D(16, 3), np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
tvm_conv3d.set_num_threads(3)
expected = layer(x)
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
for _ in range(60):
    thread = threading.Thread(target=lambda: results.append(layer(x)))
    results = []
    thread.start()
    thread.join()
    assert (results[0] == expected).all()
for _ in range(3):
    with ThreadPoolExecutor(8) as pool:
        assert all((y == expected).all() for y in pool.map(layer, [x] * 40))
import time
for _ in range(200):  # OpenMP's threads take a moment to end
    if tasks() <= before: break
    time.sleep(0.01)
print(tasks() - before)
"""
    assert int(run(beginning + code)) <= 0


def test_without_any_more_threads(beginning: str) -> None:
    """The system has no thread for us: OpenMP would end the process, TVM raised an InternalError."""
    code = """
import resource, numpy as np
resource.setrlimit(resource.RLIMIT_STACK, (1 << 32, resource.RLIM_INFINITY))
import os, sys
if "again" not in os.environ:  # the limit of stacks is read as a process begins
    os.environ["again"] = "1"
    os.execv(sys.executable, sys.orig_argv)
import tvm_conv3d
tvm_conv3d.set_num_threads(1)
x = np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
layer = tvm_conv3d.Conv3D(16, 3, accuracy="strict")
expected = layer(x)
tvm_conv3d.set_num_threads(4)
layer.plan_for(x.shape)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), now + (1 << 30)))
import threading
try:
    threading.Thread(target=print).start()
except RuntimeError:
    np.testing.assert_allclose(layer(x), expected, atol=1e-4)
    print("right")
"""
    assert run(beginning + code) == "right\n"


def test_side_by_side_with_ever_other_counts(beginning: str) -> None:
    code = """
import random, threading, numpy as np, tvm_conv3d
from tvm_conv3d.runtime import parallel, executor as runtime
layer = tvm_conv3d.Conv3D(16, 3, padding="same")
inputs = [np.random.rand(1, d, 14, 14, 16).astype(np.float32) for d in (3, 6)]
expected = [layer(x) for x in inputs]
wrong = []
def work(number):
    for i in range(40):
        if random.random() < 0.2:
            tvm_conv3d.set_num_threads(random.choice((1, 2, 3)))
        close = np.allclose(layer(inputs[i % 2]), expected[i % 2], atol=1e-4)
        wrong.extend([] if close else [i])
together = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for thread in together: thread.start()
for thread in together: thread.join()
assert not wrong
assert parallel.workers() <= 2
"""
    run(beginning + code)


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


def test_the_count_is_obeyed(beginning: str) -> None:
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
    assert float(run(beginning + code)) < 1.2


def test_a_wish_during_a_first_call_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call compiles for seconds, and then makes its thread's pool: it must not write an older count back."""
    real = executor.make_plan

    def meanwhile(*arguments: Any, **options: Any) -> Plan:
        set_num_threads(1)
        return real(*arguments, **options)

    set_num_threads(2)
    monkeypatch.setattr(executor, "make_plan", meanwhile)
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


def test_the_default_follows_the_processs_cpus(beginning: str) -> None:
    code = """
import os, numpy as np, tvm_conv3d
tvm_conv3d.Conv3D(4, 1)(np.ones((1, 2, 2, 2, 1), "float32"))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(tvm_conv3d.get_num_threads())
"""
    assert int(run(beginning + code)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_child_forked_beside_a_busy_thread_convolves(beginning: str) -> None:
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
    run(beginning + code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_child_convolves(beginning: str) -> None:
    """Beside OpenMP, too, which has a team of threads that the child has not."""
    code = """
import os, warnings, numpy as np, tvm_conv3d
warnings.simplefilter("ignore")
if "torch" in globals(): torch.ones(1 << 20).exp()
layer = tvm_conv3d.Conv3D(24, 3)
x = np.ones((1, 8, 12, 12, 16), np.float32)
expected = layer(x)
child = os.fork()
if child == 0:
    os._exit(0 if (layer(x) == expected).all() else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    run(beginning + code)


def test_the_process_may_end_beside_busy_daemon_threads(beginning: str) -> None:
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
        run(beginning + code)
