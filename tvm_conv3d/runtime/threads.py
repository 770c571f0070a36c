"""How many threads a convolution uses, and whether they are those of an OpenMP runtime.

The pool that runs the loops is in :mod:`tvm_conv3d.runtime.parallel`; it reads :data:`SETTINGS` at each loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_conv3d.runtime import openmp
from tvm_conv3d.support import process
from tvm_conv3d.target.cpu import available_cpus

#: Names the number of threads; TVM's own name for it.
VARIABLE = "TVM_NUM_THREADS"

#: OpenMP's; a list of numbers, one for each level of nested loops.
_OPENMP_VARIABLE = "OMP_NUM_THREADS"


class Settings(ctypes.Structure):
    """What the pool of threads reads at each loop; see `pool.ll`."""

    _fields_ = (("count", ctypes.c_int32), ("parallel", ctypes.c_void_p), ("thread_number", ctypes.c_void_p))


#: Of the process: threads that a loop takes whose thread does not say; OpenMP's entries where its threads are taken.
SETTINGS = process.keep("threads: what the pool reads", Settings(1, None, None))

#: Bit of a process's flags in Linux: it was forked and runs the same program still.
_FORKED = 0x40


@dataclass
class _State:
    """What the process has settled on.

    Attributes:
        requested: by :func:`set_num_threads`.
        runtime: the OpenMP runtime that is loaded; it counts.
        used: whether anybody uses it but TVM, which imports torch wherever it is installed.
        forked: whether this is a forked child, in which OpenMP would wait for its parent's threads for ever; None
            before anybody asked.
        modules: of Python when a runtime was last looked for: libraries come with them.
        tvm: whether TVM's was among them.
        set_count: tells the pool how many threads this thread's loops take; None before there is a pool.
    """

    requested: int | None = None
    runtime: openmp.OpenMP | None = None
    used: bool = False
    forked: bool | None = None
    modules: int = 0
    tvm: bool = False
    set_count: Callable[[int], Any] | None = None


class _ThreadState(threading.local):
    """How many threads the pool has been told to take for this one's loops."""

    told: int = 0


def _renew() -> None:
    _state.forked = True
    SETTINGS.parallel = None


_state = process.keep("threads: what was settled on", _State(), _renew)
_thread_state = process.keep("threads: what the pool was told", _ThreadState())


def set_num_threads(count: int) -> None:
    """Sets how many threads a convolution uses, in all Python threads, from the next call on.

    Args:
        count: at least 1.

    Raises:
        ValueError: `count` is no positive integer.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"`count` must be a positive integer. Received: count={count!r}")
    _state.requested = count


def get_num_threads() -> int:
    """Threads that a convolution uses.

    What was set, else $TVM_NUM_THREADS, else all CPUs the process may use, but not more than what
    `torch.get_num_threads()` or another OpenMP runtime that is loaded says for the calling thread, without one
    $OMP_NUM_THREADS.
    """
    runtime = _openmp()
    known = _state.requested or _positive(os.environ.get(VARIABLE, ""))
    if known:
        return known
    if runtime is not None:
        most = runtime.count()
    else:
        most = _positive(os.environ.get(_OPENMP_VARIABLE, "").partition(",")[0].strip())
    return min(most, available_cpus()) if most else available_cpus()


def owner() -> str:
    """Whose threads run the loops: the file of an OpenMP runtime, or "tvm_conv3d"."""
    runtime = _openmp()
    return runtime.path if runtime is not None and SETTINGS.parallel else "tvm_conv3d"


def tell_pool(set_count: Callable[[int], Any]) -> None:
    """Makes `set_count` known, which tells the pool how many threads the loops of the calling thread take."""
    _state.set_count = set_count


def torch_is_used() -> None:
    """Notes that the program uses torch, whose OpenMP threads run the loops from now on."""
    if not _state.used:
        _state.used = True
        _take_openmp()


def run(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a compiled function with as many threads as are wanted now."""
    run_by(get_num_threads(), function, *arguments)


def run_by(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a compiled function with so many threads."""
    if _thread_state.told != count and _state.set_count is not None:
        _state.set_count(count)
        _thread_state.told = count
    SETTINGS.count = count
    function(*arguments)


def _positive(text: str) -> int:
    """The number, 0 where `text` is none."""
    return int(text) if text.isdecimal() else 0


def _openmp() -> openmp.OpenMP | None:
    """The OpenMP runtime of the process, looked for anew once Python has loaded more modules."""
    if len(sys.modules) != _state.modules:
        _look_for_openmp()
    return _state.runtime


def _look_for_openmp() -> None:
    if _state.forked is None:
        _state.forked = _was_forked()
    found = _state.runtime
    # a library that can't be looked into is none of ours, and no reason for a call to fail
    with contextlib.suppress(Exception):
        found = openmp.loaded()
    tvm = "tvm_ffi" in sys.modules
    if found is not None and _state.runtime is None:
        # torch that comes together with TVM is no choice of the program's
        _state.used = not found.of_torch or not tvm or _state.tvm
    # the modules after the search, which loads some itself
    _state.runtime, _state.tvm, _state.modules = found, tvm, len(sys.modules)
    _take_openmp()


def _take_openmp() -> None:
    """Has loops run on the threads of OpenMP where it is used, and can be."""
    runtime = _state.runtime
    if runtime is not None and _state.used and not _state.forked:
        SETTINGS.thread_number = runtime.thread_number
        SETTINGS.parallel = runtime.parallel


def _was_forked() -> bool:
    """Whether this process was forked and runs its parent's program still; False where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED)
    except (OSError, ValueError, IndexError):
        return False
