"""Memory for results, used again once nobody holds the result any more.

The system hands out large blocks zeroed, page by page, at each first touch: for a layer with a large output that takes
as long as the convolution. A result's memory goes back to a small store when the result, and every view of it, is gone.
The next results that fit take theirs from there: a network's small volumes lie where its large ones lay before.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tvm_conv3d.support import process

#: Smaller results come from the allocator's own free lists anyway.
MIN_BYTES = 1 << 20

#: Bytes that are kept for later in any case, unless the user says otherwise; the longest unused go first.
MIN_KEPT = 512 << 20

#: More is kept where results take more: so many times what they took at once lately, as a network's next call takes the
#: same again, up to this part of the machine's memory.
_OF_USED, _OF_MACHINE = 1.25, 0.25

#: Results after which what they took before is forgotten.
_LATELY = 4096

#: Bytes of a cache line.
_LINE = 64


@dataclass(eq=False)
class _Block:
    """Memory from the system, in which results lie side by side.

    Attributes:
        memory: all of it.
        address: where that begins.
        free: where what nobody uses begins and ends, no two side by side.
    """

    memory: np.ndarray
    free: dict[int, int]
    address: int = field(init=False)

    def __post_init__(self) -> None:
        self.address, _ = self.memory.__array_interface__["data"]

    @property
    def unused(self) -> bool:
        """Whether nobody uses any of it."""
        return self.free.get(0) == self.memory.nbytes

    def give_back(self, start: int, stop: int) -> None:
        """Joins what is not used any more with what is free beside it."""
        stop = self.free.pop(stop, stop)
        start = next((first for first, end in self.free.items() if end == start), start)
        self.free[start] = stop


class _Place(NamedTuple):
    """A part of a block."""

    block: _Block
    start: int
    stop: int


class _Store:
    """Blocks that are kept, the longest unused first; a result takes the smallest free place that it fits into.

    Blocks come back by a weak reference's callback that is no Python code: a finalizer in Python would be traced where
    torch.compile is at work around it, and could run in the midst of what holds the lock. So they are taken in at the
    next call.

    Attributes:
        most: bytes that are kept; None for as many as results take.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.renew()

    def renew(self) -> None:
        """Starts over without blocks: a forked child's parent may have been in the midst of using them."""
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []
        self._kept = 0
        self._used = 0
        # the most that was used at once, in this period and the one before
        self._highest = [0, 0]
        self._taken = 0
        self._lent: set[_Return] = set()
        self._returned: deque[_Return] = deque()

    @property
    def limit(self) -> int:
        """Bytes that are kept at present."""
        if self.most is not None:
            return self.most
        return max(MIN_KEPT, min(int(_OF_USED * max(self._highest)), int(_OF_MACHINE * _machine_bytes())))

    def take(self, size: int) -> np.ndarray:
        """Bytes that come back when the array, and all that is made of it, is gone; where they may be kept, that is."""
        room = -(-size // _LINE) * _LINE
        with self._lock:
            self._take_in()
            self._note(room)
            # what is above the limit goes back to the system as soon as it is gone, not at the next call
            kept = self._used + room <= self.limit
            self._used += room if kept else 0
            place = self._place(room) if kept else None
            self._let_go(self.limit)
        if not kept:
            return self._fresh(size)
        if place is None:
            place = self._new_place(room)
        lease = _Lease(place, size)
        back = _Return(lease, self._returned.append)
        back.place = place
        self._lent.add(back)
        return np.asarray(lease)

    def let_go(self, most: int) -> None:
        """Keeps `most` bytes of what is kept now."""
        with self._lock:
            self._take_in()
            self._let_go(most)

    def kept(self) -> int:
        """Bytes that are free for results to come."""
        self.let_go(self.limit)
        return self._kept

    def _place(self, room: int) -> _Place | None:
        """The beginning of the smallest free place with so much room, which is free no more; None where there is none.

        What is held for long fills places that are left over, rather than one more large block.
        """
        fitting = [
            (stop - start, number, start)
            for number, block in enumerate(self._blocks)
            for start, stop in block.free.items()
            if stop - start >= room
        ]
        if not fitting:
            return None
        size, number, start = min(fitting)
        block = self._blocks[number]
        del block.free[start]
        if size > room:
            block.free[start + room] = start + size
        self._kept -= room
        return _Place(block, start, start + room)

    def _new_place(self, room: int) -> _Place:
        """A block of its own."""
        try:
            block = _Block(self._fresh(room), {})
        except MemoryError:
            with self._lock:
                self._used -= room
            raise
        with self._lock:
            self._blocks.append(block)
        return _Place(block, 0, room)

    def _fresh(self, size: int) -> np.ndarray:
        try:
            return _aligned(size)
        except MemoryError:
            # rather no memory for later than none for now
            self.let_go(0)
        return _aligned(size)

    def _note(self, size: int) -> None:
        """Counts what is used at once."""
        self._taken += 1
        if self._taken % _LATELY == 0:
            self._highest = [self._highest[1], 0]
        self._highest[1] = max(self._highest[1], self._used + size)

    def _take_in(self) -> None:
        """Counts places as free that have come back."""
        while self._returned:
            back = self._returned.popleft()
            self._lent.discard(back)
            block, start, stop = back.place
            self._used -= stop - start
            self._kept += stop - start
            block.give_back(start, stop)
            # the one that was used last is the last to go
            self._blocks.remove(block)
            self._blocks.append(block)

    def _let_go(self, most: int) -> None:
        """Gives blocks back of which nothing is used until no more than `most` bytes are free, as far as they go."""
        for block in [block for block in self._blocks if block.unused] if self._kept > most else ():
            self._blocks.remove(block)
            self._kept -= block.memory.nbytes
            if self._kept <= most:
                break


class _Lease:
    """What an array on a part of a block belongs to."""

    def __init__(self, place: _Place, size: int) -> None:
        # held here, too: whoever lent it may forget it, as after a fork
        self._memory = place.block.memory
        data = (place.block.address + place.start, False)
        self.__array_interface__ = {"data": data, "shape": (size,), "typestr": "|u1", "version": 3}


class _Return(weakref.ref[_Lease]):
    """What a lease that is gone leaves behind: its place."""

    __slots__ = ("place",)

    place: _Place

    # as objects: leases that are gone can't be asked
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@functools.cache
def _machine_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _aligned(size: int) -> np.ndarray:
    """Bytes that begin with a cache line; NumPy's own begin 16 bytes behind one."""
    block = np.empty(size + _LINE, np.uint8)
    start = -block.ctypes.data % _LINE
    return block[start : start + size]


_store = _Store()
process.keep("output_pool: memory for results", _store, _store.renew)


def release() -> None:
    """Gives back all that is kept for later."""
    _store.let_go(0)


def set_kept_memory(most: int) -> None:
    """Sets how much memory of results that nobody holds any more is kept for the results to come; from now on.

    Args:
        most: bytes; 0 keeps none. At the start as many as results took at once lately and a quarter more, but not less
            than 512 MiB, and not more than a quarter of the machine's memory.

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
    if size < MIN_BYTES:
        return np.empty(shape, dtype)
    offered = _offered.memory
    if offered is not None and offered.nbytes == size:
        _offered.memory = None
    else:
        offered = _store.take(size)
    return offered.view(dtype).reshape(shape)


class _Offered(threading.local):
    """Memory that a thread's next array of as many bytes is to lie in; None for none."""

    memory: np.ndarray | None = None


_offered = process.keep("output_pool: where a thread's next result is to lie", _Offered())


def offer(memory: np.ndarray | None) -> None:
    """Lets the next array of as many bytes that this thread asks for lie in this memory; None ends that."""
    _offered.memory = memory


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As :func:`empty`, beginning with a cache line: vectors that lie across two are read at half the speed."""
    size = math.prod(shape) * dtype.itemsize
    return empty(shape, dtype) if size >= MIN_BYTES else _aligned(size).view(dtype).reshape(shape)
