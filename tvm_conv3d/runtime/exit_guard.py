"""Calls that the interpreter must not end in their midst.

At exit Python ends daemon threads where they next ask for the interpreter's lock, by unwinding their stack. Inside
compiled C++ code that ends the whole process with SIGABRT. So the exit waits for calls in flight, and daemon threads
begin no further ones.
"""

from __future__ import annotations

import atexit
import functools
import threading

from tvm_conv3d.support import process

#: Seconds that the exit waits for calls to end: longer than any, unless one hangs.
_LONGEST = 60.0


class _Calls:
    """A context that marks the time a thread spends in compiled code; it may lie within another."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """For a forked child, which has none of its parent's other threads."""
        # taken by itself in hot calls: a condition takes it in Python
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._depths: dict[int, int] = {}
        self._closed = False

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._lock:
            # a call that has begun is waited for, and so must get on
            depth = self._depths.get(thread, 0)
            if depth or not self._closed or threading.current_thread() is threading.main_thread():
                self._depths[thread] = depth + 1
                return
        threading.Event().wait()

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        with self._lock:
            # none: forked in the midst of the call
            depth = self._depths.pop(thread, 1) - 1
            if depth:
                self._depths[thread] = depth
            elif self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._depths, _LONGEST)


_calls = _Calls()
process.keep("exit_guard: calls in flight", _calls, _calls.renew)


def in_flight() -> _Calls:
    """The context of calls of compiled code."""
    _close_at_exit()
    return _calls


@functools.cache
def _close_at_exit() -> None:
    atexit.register(_calls.close)
