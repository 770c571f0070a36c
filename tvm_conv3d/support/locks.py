"""Locks that a forked child finds free, whichever of its parent's threads held them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any


class ForkSafeLock:
    """A lock of the process: a forked child has its own, as the threads that would release its parent's are not there.

    What the lock guards must be whole at any moment (a table, a counter), as a fork may come in the midst.

    Args:
        make: `threading.Lock`, or `threading.RLock` for a lock that its holder may take again.
    """

    def __init__(self, make: Callable[[], Any] = threading.Lock) -> None:
        self._make = make
        self._of_process: dict[int, Any] = {}

    def __enter__(self) -> None:
        process = os.getpid()
        lock = self._of_process.get(process)
        if lock is None:
            # in one step: several threads of the child may come here at once
            lock = self._of_process.setdefault(process, self._make())
        lock.acquire()

    def __exit__(self, *_: object) -> None:
        # none: forked while this very thread held its parent's
        lock = self._of_process.get(os.getpid())
        if lock is not None:
            lock.release()
