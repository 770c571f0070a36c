"""Memory for results, used again once nobody holds the result any more.

The system hands out large blocks zeroed, page by page, at each first touch: for a layer with a large output that takes
as long as the convolution. A result's memory goes back to a small store when the result (and every view of it) is gone,
and the next result of that size takes it from there.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import numpy as np

from tvm_conv3d.support import process

#: Smaller results come from the allocator's own free lists anyway.
_MIN_BYTES = 1 << 20

#: Bytes that are kept for later, at most, unless the user says otherwise; the longest unused go first.
MAX_KEPT = 512 << 20


#: Bytes of a cache line.
_LINE = 64


class _Store:
    """Free blocks by size, oldest first."""

    def __init__(self, most: int = MAX_KEPT) -> None:
        self.most = most
        self.renew()

    def renew(self) -> None:
        """Starts over without blocks: a forked child's parent may have been in the midst of using them."""
        self._lock = threading.Lock()
        self._free: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self._kept = 0

    def take(self, size: int) -> np.ndarray:
        with self._lock:
            blocks = self._free.get(size)
            if blocks:
                self._kept -= size
                block = blocks.pop()
                if not blocks:
                    del self._free[size]
                return block
        try:
            return _aligned(size)
        except MemoryError:
            # rather no memory for later than none for now
            self.let_go(0)
            return _aligned(size)

    def put_back(self, block: np.ndarray) -> None:
        # a finalizer may run inside `take`, in the same thread: then the block is simply let go
        lock = self._lock
        if not lock.acquire(blocking=False):
            return
        try:
            self._free.setdefault(block.nbytes, []).append(block)
            self._free.move_to_end(block.nbytes)
            self._kept += block.nbytes
            self._let_go(self.most)
        finally:
            lock.release()

    def let_go(self, most: int) -> None:
        """Keeps `most` bytes of what is kept now."""
        with self._lock:
            self._let_go(most)

    def _let_go(self, most: int) -> None:
        while self._kept > most:
            size, blocks = next(iter(self._free.items()))
            blocks.pop(0)
            self._kept -= size
            if not blocks:
                del self._free[size]


def _aligned(size: int) -> np.ndarray:
    """Bytes that begin with a cache line; NumPy's own begin 16 bytes behind one."""
    block = np.empty(size + _LINE, np.uint8)
    start = -block.ctypes.data % _LINE
    return block[start : start + size]


class _Lease:
    """Owns a block for as long as an array on it lives."""

    def __init__(self, store: _Store, block: np.ndarray) -> None:
        self._store = store
        self._block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._store.put_back(self._block)


_store = _Store()
process.keep("output_pool: memory for results", _store, _store.renew)


def release() -> None:
    """Gives back all that is kept for later."""
    _store.let_go(0)


def set_kept_memory(most: int) -> None:
    """Sets how much memory of results that nobody holds any more is kept for the results to come; from now on.

    Args:
        most: bytes; 0 keeps none. 512 MiB at the start.

    Raises:
        ValueError: `most` is no integer of at least 0.
    """
    _store.most = check_bytes(most)
    _store.let_go(most)


def check_bytes(most: int) -> int:
    """`most`, where it is a number of bytes.

    Raises:
        ValueError: it is no integer of at least 0.
    """
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise ValueError(f"`most` must be a number of bytes, an integer of at least 0. Received: most={most!r}")
    return most


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised C-contiguous array that no other array shares memory with."""
    size = math.prod(shape) * dtype.itemsize
    if size < _MIN_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(_store, _store.take(size))).view(dtype).reshape(shape)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As :func:`empty`, beginning with a cache line: vectors that lie across two are read at half the speed."""
    size = math.prod(shape) * dtype.itemsize
    return empty(shape, dtype) if size >= _MIN_BYTES else _aligned(size).view(dtype).reshape(shape)
