"""How many threads a convolution uses, and whether they are those of an OpenMP runtime.

The pool that runs the loops is in :mod:`tvm_conv3d.parallel`; it reads :data:`SETTINGS` at each loop.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from tvm_conv3d import openmp
from tvm_conv3d.targets import available_cpus

#: Names the number of threads; TVM's own name for it.
VARIABLE = "TVM_NUM_THREADS"

#: OpenMP's; a list of numbers, one for each level of nested loops.
_OPENMP_VARIABLE = "OMP_NUM_THREADS"


class Settings(ctypes.Structure):
    """What the pool of threads reads at each loop; see `pool.ll`."""

    _fields_ = (("count", ctypes.c_int32), ("parallel", ctypes.c_void_p), ("thread_number", ctypes.c_void_p))


#: Of the process: threads that a loop takes, and OpenMP's entries where its threads take the pool's place.
SETTINGS = Settings(1, None, None)


class _State:
    """What the process has settled on.

    Attributes:
        requested: by :func:`set_num_threads`.
        runtime: the OpenMP runtime that is used.
        modules: of Python when one was last looked for: libraries come with them.
        forked: whether this is a forked child, in which OpenMP would wait for its parent's threads for ever.
    """

    requested: int | None = None
    runtime: openmp.OpenMP | None = None
    modules: int = 0
    forked: bool = False


_renewals: list[Callable[[], None]] = []


def after_fork(renew: Callable[[], None]) -> None:
    """Has `renew` called in forked children, which inherit locks but not the threads that would release them."""
    _watch_forks()
    if renew not in _renewals:
        _renewals.append(renew)


def set_num_threads(count: int) -> None:
    """Sets how many threads a convolution uses, in all Python threads, from the next call on.

    Args:
        count: at least 1.

    Raises:
        ValueError: `count` is no positive integer.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"`count` must be a positive integer. Received: count={count!r}")
    _State.requested = count


def get_num_threads() -> int:
    """Threads that a convolution uses.

    What was set, else $TVM_NUM_THREADS, else all CPUs the process may use, but not more than what
    `torch.get_num_threads()` or another OpenMP runtime that is loaded says for the calling thread, without one
    $OMP_NUM_THREADS.
    """
    known = _State.requested or _positive(os.environ.get(VARIABLE, ""))
    if known:
        return known
    runtime = _openmp()
    if runtime is not None:
        most = runtime.count()
    else:
        most = _positive(os.environ.get(_OPENMP_VARIABLE, "").partition(",")[0].strip())
    return min(most, available_cpus()) if most else available_cpus()


def owner() -> str:
    """Whose threads run the loops: the file of an OpenMP runtime, or "tvm_conv3d"."""
    runtime = _openmp()
    return "tvm_conv3d" if runtime is None else runtime.path


def run(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a compiled function with as many threads as are wanted now."""
    _openmp()
    SETTINGS.count = get_num_threads()
    function(*arguments)


def _positive(text: str) -> int:
    """The number, 0 where `text` is none."""
    return int(text) if text.isdecimal() else 0


def _openmp() -> openmp.OpenMP | None:
    """The OpenMP runtime of the process, looked for anew once Python has loaded more modules."""
    if len(sys.modules) != _State.modules and not _State.forked:
        _watch_forks()
        _State.runtime = runtime = openmp.loaded()
        if runtime is not None:
            SETTINGS.thread_number = runtime.thread_number
            SETTINGS.parallel = runtime.parallel
        # after the search, which loads modules itself
        _State.modules = len(sys.modules)
    return _State.runtime


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_forked_child)


def _in_forked_child() -> None:
    _State.forked = True
    _State.runtime = SETTINGS.parallel = None
    for renew in _renewals:
        renew()
