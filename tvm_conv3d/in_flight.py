"""Calls that the interpreter must not end in their midst.

At exit Python ends daemon threads where they next ask for the interpreter's lock, by unwinding their stack. Inside
compiled C++ code that ends the whole process with SIGABRT. So the exit waits for calls in flight, and daemon threads
begin no further ones.
"""

from __future__ import annotations

import atexit
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds that the exit waits for calls to end: longer than any, unless one hangs.
_LONGEST = 60.0


class _Calls:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False

    def enter(self) -> None:
        with self._changed:
            if not self._closed or threading.current_thread() is threading.main_thread():
                self._running += 1
                return
        threading.Event().wait()

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0, _LONGEST)


_calls = _Calls()


@contextmanager
def in_flight() -> Iterator[None]:
    """Marks the time that a thread spends in compiled code."""
    _close_at_exit()
    _calls.enter()
    try:
        yield
    finally:
        _calls.leave()


def renew() -> None:
    """For a forked child, which has none of its parent's other threads."""
    global _calls
    _calls = _Calls()


@functools.cache
def _close_at_exit() -> None:
    atexit.register(lambda: _calls.close())
