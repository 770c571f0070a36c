"""Whether pages of this process's memory were written to, as Linux notes it while it serves the writes.

A write-protected page of `userfaultfd(2)` in its asynchronous mode (Linux 6.7) is made writable at the first write,
by the kernel and without a signal, and `PAGEMAP_SCAN` (`Documentation/admin-guide/mm/pagemap.rst`) finds the pages
that still are protected. Writes of the kernel's own, such as `read(2)` into the memory or another process's
`process_vm_writev(2)`, are noted likewise. What devices write past the processor's page tables is not.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from pathlib import Path

#: Number of the system call, by machine.
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}

# linux/userfaultfd.h
_USER_MODE_ONLY = 1
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _MODE_WRITE_PROTECT = 0xC020AA00, 2
_WRITE_PROTECT, _PROTECT = 0xC018AA06, 1
_UNPOPULATED, _ASYNCHRONOUS = 1 << 13, 1 << 15

# linux/fs.h: the request and the bytes of its structure; kinds of pages: written to, of a file or shared
_SCAN, _SIZE, _CHECK_ASYNCHRONOUS = 0xC0606610, 96, 2
_WRITTEN, _OF_FILE = 2, 4

PAGE = mmap.PAGESIZE


class WrittenPages:
    """Watches ranges of pages; several threads may use it.

    Attributes:
        available: whether this system can; False on others than Linux, older ones, and where it is forbidden.
    """

    def __init__(self) -> None:
        self._protector = self._map = -1
        self._process = os.getpid()
        self.available = False
        try:
            self._open()
            self.available = True
            self.available = self._works()
        except OSError:
            self.available = False

    def _open(self) -> None:
        number = _USERFAULTFD.get(platform.machine()) if sys.platform == "linux" else None
        if number is None:
            raise OSError("there is no userfaultfd here")
        if _is_filtered():
            raise OSError("a filter may end the process at this call")
        self._system = ctypes.CDLL(None)
        self._protector = self._system.syscall(number, _USER_MODE_ONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if self._protector < 0:
            raise OSError("userfaultfd is not allowed here")
        self._control(self._protector, _API, _API_VERSION, _ASYNCHRONOUS | _UNPOPULATED, 0)
        self._map = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def _works(self) -> bool:
        """Whether a write is noted, and nothing else."""
        with mmap.mmap(-1, 3 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[:] = b"\1" * len(memory)
            held = ctypes.c_char.from_buffer(memory)
            start = ctypes.addressof(held)
            del held
            self.protect(start, start + 2 * PAGE)
            memory[2 * PAGE] = 2
            untouched = self.untouched(start, start + 2 * PAGE)
            memory[PAGE + 1] = 2
            return untouched and not self.untouched(start, start + 2 * PAGE)

    def protect(self, start: int, stop: int) -> None:
        """Watches writes from now on; what was noted of these pages before is forgotten.

        Args:
            start, stop: addresses, multiples of `PAGE`.

        Raises:
            OSError: this memory can't be watched.
        """
        self._check()
        self._control(self._protector, _REGISTER, start, stop - start, _MODE_WRITE_PROTECT, 0)
        self._control(self._protector, _WRITE_PROTECT, start, stop - start, _PROTECT)
        if self._has(_OF_FILE, start, stop):
            raise OSError("other processes may write to these pages")

    def untouched(self, start: int, stop: int) -> bool:
        """Whether nothing was written since :meth:`protect`; False, too, where that is not known for sure.

        Args:
            start, stop: as they were given to it.
        """
        try:
            return not self._has(_WRITTEN, start, stop)
        except OSError:
            # other memory lies there by now
            return False

    def _has(self, kind: int, start: int, stop: int) -> bool:
        """Whether a page is of this kind, and all are in memory that is watched.

        Raises:
            OSError: they are not.
        """
        self._check()
        found = (ctypes.c_uint64 * 3)()
        place, most = ctypes.addressof(found), 1
        asked = (_SIZE, _CHECK_ASYNCHRONOUS, start, stop, 0, place, 1, most, 0, kind, 0, kind)
        return self._control(self._map, _SCAN, *asked) > 0

    def close(self) -> None:
        """Ends all watching."""
        self.available = False
        for file in (self._protector, self._map):
            if file >= 0:
                os.close(file)
        self._protector = self._map = -1

    def _check(self) -> None:
        """Raises an OSError where pages can't be watched, as in a forked child: the files mean its parent's."""
        if not self.available or os.getpid() != self._process:
            raise OSError("pages can't be watched here")

    def _control(self, file: int, request: int, *words: int) -> int:
        """The result of `ioctl(2)` on a structure of these words of 64 bits.

        Raises:
            OSError: it failed.
        """
        result = int(self._system.ioctl(file, ctypes.c_ulong(request), (ctypes.c_uint64 * len(words))(*words)))
        if result < 0:
            raise OSError(f"ioctl {request:#x} failed")
        return result


def _is_filtered() -> bool:
    """Whether system calls of this process go through a filter, as in most containers; some kill it."""
    status = Path("/proc/self/status").read_text()
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())
