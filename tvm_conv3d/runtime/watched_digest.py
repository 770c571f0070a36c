"""Digests of arrays that hardly ever change: where the system notes writes, only what was written is read again.

A digest reads all weights of a network at each call: of 130 MB it takes 2 ms, and as much again of the caches that the
convolutions would find their inputs in. Whether pages were written to is known in 10 us (:mod:`written_pages`).

Devices that write to memory by themselves leave no such trace. So some words of each array are compared beside it,
which tells of a transfer as a whole.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.runtime import digest
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.support.written_pages import PAGE, WrittenPages

#: Bytes from which on an array is watched; the digest of fewer takes no longer.
_LEAST = 1 << 19

#: Calls that find an array as it was before it is watched: the first write to each page then takes as long as they do.
_CALLS = 3

#: Arrays that are watched at once, and whose calls are counted.
_MOST, _MOST_COUNTED = 512, 2048

#: Words that are compared of an array whose pages were not written to.
_WORDS = 8

#: Address and bytes of an array.
_Place = tuple[int, int]

#: What is compared of an array whose pages were not written to.
_Words = tuple[bytes, bytes, list[int]]


@dataclass(frozen=True)
class _Met:
    """An array that is not watched.

    Attributes:
        found: its last digest.
        calls: that found it.
        wait: calls after which it is watched.
    """

    found: bytes
    calls: int
    wait: int


@dataclass(eq=False)
class _Watch:
    """An array that is watched.

    Attributes:
        found: its digest; None until that was made.
        words: what is compared at each call.
        wait: of :class:`_Met`.
    """

    wait: int
    words: _Words
    found: bytes | None = None


class WatchedDigests:
    """Digests of arrays by their places; several threads may use it."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._pages: WrittenPages | None = None
        self._watches: dict[_Place, _Watch] = {}
        self._met: Recent[_Place, _Met] = Recent(_MOST_COUNTED)

    def renew(self) -> None:
        """Forgets all, in a forked child: its memory is another."""
        if self._pages is not None:
            self._pages.close()
        self._pages, self._watches = None, {}
        self._met.clear()

    def of(self, array: np.ndarray) -> bytes:
        """As :func:`tvm_conv3d.runtime.digest.of`."""
        if array.nbytes < _LEAST:
            return digest.of(array)
        place = (int(array.__array_interface__["data"][0]), array.nbytes)
        watch = self._watches.get(place)
        if watch is None:
            return self._met_again(array, place)
        if watch.found is None:
            # another thread makes it
            return digest.of(array)
        return watch.found if self._holds(place, watch) else self._read(array, place, watch)

    def _holds(self, place: _Place, watch: _Watch) -> bool:
        pages = self._pages
        if pages is None or not pages.untouched(*_inside(place)) or _words(place) != watch.words:
            return False
        # else somebody watches an array beside it anew, and with that forgot what was written
        return self._watches.get(place) is watch

    def _read(self, array: np.ndarray, place: _Place, watch: _Watch) -> bytes:
        """The digest of a watched array that was written to, and is not watched for a longer while than before."""
        with self._lock:
            if self._watches.get(place) is watch:
                del self._watches[place]
        found = digest.of(array)
        self._met.put(place, _Met(found, 1, 2 * watch.wait))
        return found

    def _met_again(self, array: np.ndarray, place: _Place) -> bytes:
        met = self._met.get(place)
        wait = _CALLS if met is None else met.wait
        if met is not None and met.calls >= wait:
            watched = self._watched(array, place, wait)
            if watched is not None:
                return watched
            met, wait = None, 2 * wait
        found = digest.of(array)
        calls = 1 if met is None or met.found != found else met.calls + 1
        self._met.put(place, _Met(found, calls, wait))
        return found

    def _watched(self, array: np.ndarray, place: _Place, wait: int) -> bytes | None:
        """The digest of an array that is watched from now on; None where it can't be."""
        start, stop = _inside(place)
        with self._lock:
            if self._pages is None:
                self._pages = WrittenPages()
            # protecting their pages forgets what was written there
            kept = {other: watch for other, watch in self._watches.items() if not _overlap(other, place)}
            while len(kept) >= _MOST:
                del kept[next(iter(kept))]
            self._watches = kept
            try:
                self._pages.protect(start, stop)
            except OSError:
                return None
            watch = self._watches[place] = _Watch(wait, _words(place))
        watch.found = digest.of(array)
        return watch.found


def _inside(place: _Place) -> tuple[int, int]:
    """The whole pages of an array."""
    start, size = place
    return -(-start // PAGE) * PAGE, (start + size) // PAGE * PAGE


def _overlap(one: _Place, other: _Place) -> bool:
    (start, size), (begin, count) = one, other
    return start < begin + count and begin < start + size


def _words(place: _Place) -> _Words:
    """What lies before its first and behind its last whole page, and some words between."""
    start, size = place
    first, last = _inside(place)
    count = (last - first) // 8
    between = (ctypes.c_uint64 * count).from_address(first)[:: count // _WORDS]
    return ctypes.string_at(start, first - start), ctypes.string_at(last, start + size - last), between


_watched = WatchedDigests()
process.keep("watched_digest: arrays that are watched", _watched, _watched.renew)


def of(array: np.ndarray) -> bytes:
    """As :func:`tvm_conv3d.runtime.digest.of`; of an array that was met unchanged for a while, without reading it.

    Args:
        array: of dense memory that stays as it is during the call.
    """
    return _watched.of(array)
