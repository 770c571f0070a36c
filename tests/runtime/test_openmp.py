"""Another library's OpenMP runtime: who counts, and whose threads run the loops."""

from __future__ import annotations

import sys

import pytest

from processes import VARIABLES, run
from tvm_conv3d import get_num_threads
from tvm_conv3d.runtime import threads
from tvm_conv3d.target.cpu import available_cpus


@pytest.mark.parametrize("value", ["1", "1,4", " 1 "])
def test_the_variable_of_openmp(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It holds where no runtime is loaded that has read it."""
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert get_num_threads() == 1
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    assert get_num_threads() == 3


def test_the_variable_of_openmp_beside_torch() -> None:
    pytest.importorskip("torch")
    code = """
import torch, numpy as np, tvm_conv3d
tvm_conv3d.Conv3D(16, 3)(np.ones((1, 6, 14, 14, 16), np.float32))
print(tvm_conv3d.get_num_threads())
"""
    assert int(run(code, OMP_NUM_THREADS="1")) == 1


@pytest.mark.parametrize("value", ["", "0", "-1", "many", "1e9"])
def test_numbers_that_are_none_are_passed_over(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    for name in VARIABLES:
        monkeypatch.setenv(name, value)
    assert get_num_threads() == available_cpus()


def test_torch_says_how_many() -> None:
    pytest.importorskip("torch")
    code = """
import torch, threading, numpy as np, tvm_conv3d
layer, x = tvm_conv3d.Conv3D(16, 3), np.ones((1, 6, 14, 14, 16), np.float32)
expected = layer(x)
torch.set_num_threads(1)
assert tvm_conv3d.get_num_threads() == 1
np.testing.assert_allclose(layer(x), expected, atol=1e-4)
thread = threading.Thread(target=lambda: print(tvm_conv3d.get_num_threads()))
thread.start()
thread.join()
tvm_conv3d.set_num_threads(2)
assert tvm_conv3d.get_num_threads() == 2
"""
    assert int(run(code)) == 1


def test_torch_that_comes_later_is_seen() -> None:
    pytest.importorskip("torch")
    code = """
import sys; sys.modules["torch"] = None
import numpy as np, tvm_conv3d
from tvm_conv3d.runtime import parallel, threads
layer, x = tvm_conv3d.Conv3D(16, 3), np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
expected = layer(x)
assert not threads.SETTINGS.parallel
del sys.modules["torch"]
import torch
assert (layer(x) == expected).all()
assert threads.SETTINGS.parallel
"""
    run(code)


def test_torch_that_only_tvm_brought_is_not_used() -> None:
    """TVM imports torch wherever it is installed. Where a CPU is busy, OpenMP's barriers outlast small loops."""
    pytest.importorskip("torch")
    code = """
import sys, numpy as np, tvm_conv3d
from tvm_conv3d.runtime import threads
layer, x = tvm_conv3d.Conv3D(16, 3), np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
expected = layer(x)
assert "torch" in sys.modules and not threads.SETTINGS.parallel and threads.owner() == "tvm_conv3d"
y = layer(sys.modules["torch"].from_numpy(x))
assert (y.numpy() == expected).all() and threads.SETTINGS.parallel and "omp" in threads.owner()
"""
    run(code)


def test_each_thread_has_torchs_count_for_it() -> None:
    """The count of one thread was that of the process for a moment, in which another thread's loop began."""
    pytest.importorskip("torch")
    code = """
import ctypes, torch, threading, numpy as np, tvm_conv3d
from tvm_conv3d.runtime import parallel
layer, x = tvm_conv3d.Conv3D(16, 3), np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
class Environment(ctypes.Structure):
    _fields_ = (("handle", ctypes.c_void_p), ("tasks", ctypes.c_int32))
Task = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Environment), ctypes.c_void_p)
def of_loop():
    seen = set()
    launch = ctypes.CFUNCTYPE(ctypes.c_int, Task, ctypes.c_void_p, ctypes.c_int)(parallel._pool().launch)
    launch(Task(lambda task, environment, data: seen.add(environment[0].tasks) or 0), None, 0)
    return seen
def work(count):
    torch.set_num_threads(count)
    layer(x)
    ready.set()
    other_ready.wait()
    counts[count] = of_loop()
counts, ready = {}, threading.Event()
other_ready = threading.Event()
first = threading.Thread(target=work, args=(1,))
first.start()
ready.wait()
ready = other_ready
work(2)
first.join()
assert counts == {1: {1}, 2: {2}}, counts
"""
    if available_cpus() > 1:
        run(code)


def test_libraries_that_can_not_be_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise AttributeError("'NoneType' object has no attribute 'split'")

    monkeypatch.setattr(threads.openmp, "loaded", fails)
    monkeypatch.setattr(threads._state, "modules", 0)
    monkeypatch.setattr(threads._state, "runtime", None)
    assert get_num_threads() >= 1
    assert threads._state.modules == len(sys.modules)


def test_a_loop_within_a_loop_of_openmp() -> None:
    """The layer called by each thread of a team, as from a user's own parallel code."""
    pytest.importorskip("torch")
    code = """
import torch, ctypes, numpy as np, tvm_conv3d
from tvm_conv3d.runtime import openmp
layer, x = tvm_conv3d.Conv3D(16, 3), np.random.rand(1, 6, 14, 14, 16).astype(np.float32)
expected, results = layer(x), []
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: results.append(layer(x)))
openmp.loaded().library.GOMP_parallel(body, None, 2, 0)
assert len(results) == 2  # within a team torch counts one thread, for which there is a plan of its own
for y in results: np.testing.assert_allclose(y, expected, atol=1e-4)
"""
    run(code)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a forked process that it is one")
def test_a_child_that_imports_the_package_after_the_fork() -> None:
    """Its parent has run OpenMP's threads, which it has not, and nobody has told the package of the fork."""
    pytest.importorskip("torch")
    code = """
import os, warnings, torch
warnings.simplefilter("ignore")
torch.rand(1 << 22).exp()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    import numpy as np, tvm_conv3d
    y = tvm_conv3d.Conv3D(8, 3)(torch.ones(1, 6, 14, 14, 16))
    assert tvm_conv3d.get_num_threads() == 1, "a worker of torch's DataLoader has one thread"
    tvm_conv3d.set_num_threads(2)
    tvm_conv3d.Conv3D(8, 3)(np.ones((1, 6, 14, 14, 16), np.float32))
    os._exit(0)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    run(code)
