"""Calls that the interpreter must not end in their midst.

At exit Python ends daemon threads where they next ask for the interpreter's lock, by unwinding their stack. Inside
compiled C++ code that ends the whole process with SIGABRT. So the exit waits for calls in flight, and daemon threads
begin no further ones.
"""

from __future__ import annotations

import atexit
import functools
import threading

#: Seconds that the exit waits for calls to end: longer than any, unless one hangs.
_LONGEST = 60.0


class _Calls:
    """A context that marks the time a thread spends in compiled code."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            if not self._closed or threading.current_thread() is threading.main_thread():
                self._running += 1
                return
        threading.Event().wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            if self._closed:
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0, _LONGEST)


_calls = _Calls()


def in_flight() -> _Calls:
    """The context of calls of compiled code."""
    _close_at_exit()
    return _calls


def renew() -> None:
    """For a forked child, which has none of its parent's other threads."""
    global _calls
    _calls = _Calls()


@functools.cache
def _close_at_exit() -> None:
    atexit.register(lambda: _calls.close())
