"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tvm_conv3d.support import heap


def resident() -> int:
    """Bytes of this process's memory that are its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's heap")
def test_freed_memory_goes_back() -> None:
    blocks = [bytearray(2000) for _ in range(20000)]
    # the last ones hold what lies before them in the heap
    del blocks[:-100]
    before = resident()
    heap.give_back()
    assert before - resident() > 20 << 20
