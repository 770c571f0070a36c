"""How many threads a convolution uses.

TVM gives each Python thread a pool of its own, made at the first parallel call and of fixed size from then on. A thread
whose pool has another size than is wanted now hands its calls to a helper thread with a fitting pool.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tvm_conv3d.targets import available_cpus

_VARIABLE = "TVM_NUM_THREADS"

#: TVM's mode of a pool that prefers no kind of core.
_ALL_CORES = 1


class _OfThread(threading.local):
    """A Python thread's pool: its size (None: not made yet) and the helper in its stead."""

    size: int | None = None
    helper: ThreadPoolExecutor | None = None
    helper_size: int | None = None


_mine = _OfThread()

#: What this module put into the environment for TVM to read, as opposed to what the user did.
_ours: str | None = None

_renewals: list[Callable[[], None]] = []


def after_fork(renew: Callable[[], None]) -> None:
    """Has `renew` called in forked children, which inherit locks but not the threads that would release them."""
    _forget_pools_after_fork()
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
    global _ours
    _ours = None
    os.environ[_VARIABLE] = str(count)


def get_num_threads() -> int:
    """Threads that a convolution uses: what was set, else $TVM_NUM_THREADS, else all CPUs the process may use."""
    configured = os.environ.get(_VARIABLE, "")
    wished = configured.isdecimal() and int(configured) > 0 and configured != _ours
    return int(configured) if wished else available_cpus()


def run(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a compiled function with as many threads as are wanted now."""
    wanted = get_num_threads()
    if _mine.size is None:
        _make_pool(wanted)
    if _mine.size == wanted:
        function(*arguments)
    else:
        _helper(wanted).submit(run, function, *arguments).result()


def _make_pool(count: int) -> None:
    """Makes this thread's pool; TVM reads its size, and at each call whether to use it, from the environment."""
    import tvm_ffi

    global _ours
    if os.environ.get(_VARIABLE) != str(count):
        _ours = os.environ[_VARIABLE] = str(count)
    # pinned threads would fight with other libraries' for the same cores
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    # TVM's idle threads otherwise spin for a tenth of a second after each call, on cores that others need
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "10000")
    _forget_pools_after_fork()
    tvm_ffi.get_global_func("runtime.config_threadpool")(_ALL_CORES, count)
    _mine.size = count


def _helper(wanted: int) -> ThreadPoolExecutor:
    if _mine.helper is None or _mine.helper_size != wanted:
        if _mine.helper is not None:
            _mine.helper.shutdown(wait=False)
        _mine.helper = ThreadPoolExecutor(1, thread_name_prefix="tvm_conv3d")
        _mine.helper_size = wanted
    return _mine.helper


@functools.cache
def _forget_pools_after_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_forked_child)


def _in_forked_child() -> None:
    """A forked child has the pools' memory but not their threads: calls would wait for ever."""
    if _mine.size is not None:
        _mine.size = 0
    _mine.helper = None
    for renew in _renewals:
        renew()
