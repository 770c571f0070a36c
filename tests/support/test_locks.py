"""Locks in forked children: a child of a process whose other threads hold every lock must not wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tvm_conv3d
from tvm_conv3d.support.locks import ForkSafeLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")

CHILD = """
import os, sys, threading, warnings
import numpy as np
from tvm_conv3d import Conv3D
from tvm_conv3d.runtime import loader
from tvm_conv3d.layer import naming
from tvm_conv3d.layer.objects.seeds import SeedGenerator
from tvm_conv3d.engine.records import store
warnings.simplefilter("ignore")
x = np.ones((1, 2, 2, 2, 1), np.float32)
layer, unbuilt, seeds = Conv3D(2, 1, bias_initializer="ones"), Conv3D(2, 1), SeedGenerator(1)
layer(x)
locks = {
    "variable": layer.weights[0]._lock, "build": unbuilt._build_lock, "seeds": seeds._lock, "names": naming._lock,
    "records": store._lock, "loading": loader._loading_lock, "packing": layer._executor._lock,
}
held, done = threading.Event(), threading.Event()
def hold():
    for lock in locks.values():
        lock.__enter__()
    held.set()
    done.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    layer.set_weights([np.ones((1, 1, 1, 1, 2)), np.zeros(2)])
    loader._loaded.clear()
    store._files.clear()
    unbuilt(x), Conv3D(2, 1)(x), seeds.next()
    os._exit(0 if (layer(x) == 1).all() else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_a_child_does_not_wait_for_its_parents_threads() -> None:
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=120)


def test_a_lock_is_a_lock() -> None:
    for make in (threading.Lock, threading.RLock):
        lock, inside, most = ForkSafeLock(make), [], []

        def work(lock: ForkSafeLock = lock, inside: list[int] = inside, most: list[int] = most) -> None:
            for _ in range(200):
                with lock:
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert max(most) == 1
    again = ForkSafeLock(threading.RLock)
    with again, again:
        pass


def test_a_fork_while_holding() -> None:
    """The child of the holder leaves the block as its parent does, and may take the lock again."""
    code = """
import os, warnings
from tvm_conv3d.support.locks import ForkSafeLock
warnings.simplefilter("ignore")
lock = ForkSafeLock()
with lock:
    child = os.fork()
with lock:
    pass
if child == 0:
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_lock_is_one_of_these() -> None:
    """The exceptions renew themselves after a fork, or hold no lock beyond a moment in which nobody forks."""
    root = Path(str(tvm_conv3d.__file__)).parent
    plain = {p.name for p in root.rglob("*.py") if "= threading.Lock()" in p.read_text() or "RLock()" in p.read_text()}
    assert plain == {"exit_guard.py", "output_pool.py"}
