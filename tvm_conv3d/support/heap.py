"""The C library's heap, which keeps what compilers and frameworks have freed."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Gives freed memory back to the system, where the C library can (glibc's can); it takes some milliseconds.

    Fits behind work that takes much memory once, such as compiling.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
