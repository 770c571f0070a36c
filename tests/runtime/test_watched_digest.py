"""Digests of watched arrays are those of their bytes, whoever writes to them; what is unchanged is not read."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tvm_conv3d.runtime import digest, watched_digest
from tvm_conv3d.runtime.watched_digest import WatchedDigests
from tvm_conv3d.support.written_pages import PAGE, WrittenPages


def noted() -> bool:
    pages = WrittenPages()
    available = pages.available
    pages.close()
    return available


NOTED = pytest.mark.skipif(not noted(), reason="this system notes no written pages (Linux 6.7 does, unfiltered)")

#: Calls that are read at most, until an array is watched.
CALLS = watched_digest._CALLS + 2


@pytest.fixture
def digests() -> Iterator[WatchedDigests]:
    made = WatchedDigests()
    yield made
    made.renew()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each array that is read."""
    sizes: list[int] = []
    of = digest.of

    def counted(array: np.ndarray) -> bytes:
        sizes.append(array.nbytes)
        return of(array)

    monkeypatch.setattr(digest, "of", counted)
    return sizes


def random(count: int = 1 << 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count)


def met(digests: WatchedDigests, array: np.ndarray, calls: int = CALLS) -> bytes:
    return [digests.of(array) for _ in range(calls)][-1]


@NOTED
def test_unchanged_arrays_are_not_read(digests: WatchedDigests, read: list[int]) -> None:
    array = random()
    wanted = digest.of(array)
    met(digests, array)
    read.clear()
    assert met(digests, array) == wanted
    assert read == []


@pytest.mark.parametrize("place", [0, 1, 511, 512, 70_001, -513, -1])
def test_each_write_is_seen(digests: WatchedDigests, place: int) -> None:
    array = random()
    for change in range(3):
        met(digests, array, 40)
        array[place] += change + 1
        for _ in range(3):
            assert digests.of(array) == digest.of(array)


@NOTED
def test_arrays_that_change_often_are_watched_ever_more_rarely(digests: WatchedDigests, read: list[int]) -> None:
    array = random()
    counts = []
    for change in range(3):
        read.clear()
        met(digests, array, 100)
        counts.append(len(read))
        array[5] = change
    assert counts[0] < counts[1] < counts[2] < 100


def test_writes_of_the_system_are_seen(digests: WatchedDigests, tmp_path: Path) -> None:
    array = random()
    met(digests, array)
    (tmp_path / "bytes").write_bytes(b"\7" * 100)
    with (tmp_path / "bytes").open("rb", buffering=0) as file:
        assert file.readinto(memoryview(array)[5000:5010].cast("B")) == 80
    assert digests.of(array) == digest.of(array)


def test_writes_to_what_lies_across_another_watched_array_are_seen(digests: WatchedDigests) -> None:
    whole = random(1 << 19)
    first, second = whole[: 1 << 18], whole[1 << 17 : 3 << 17]
    met(digests, first)
    met(digests, second, CALLS - 2)
    whole[(1 << 17) + 9000] += 1
    # begins to watch the second one, and forgets with that what was written to the first
    met(digests, second, 3 * CALLS)
    assert digests.of(first) == digest.of(first)
    assert digests.of(second) == digest.of(second)


@pytest.mark.skipif(sys.platform != "linux", reason="mappings of Linux")
@pytest.mark.parametrize("shared", [False, True])
def test_other_mappings(digests: WatchedDigests, shared: bool) -> None:
    """Memory that other processes may write to is read each time; so are pages that were given back."""
    flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 300 * PAGE, flags=flags) as memory:
        array = np.frombuffer(memory, np.float64)
        array[:] = random(len(array))
        met(digests, array)
        assert not (shared and digests._watches)
        child = os.fork()
        if child == 0:
            array[777] = 5
            os._exit(0)
        os.waitpid(child, 0)
        assert digests.of(array) == digest.of(array)
        met(digests, array, 3 * CALLS)
        memory.madvise(mmap.MADV_DONTNEED, 100 * PAGE, PAGE)
        assert digests.of(array) == digest.of(array)
        del array


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("renewed", [False, True])
def test_forked_children_see_their_own_writes(digests: WatchedDigests, renewed: bool) -> None:
    array = random()
    met(digests, array)
    child = os.fork()
    if child == 0:
        if renewed:
            digests.renew()
        array[9] = 1
        right = [met(digests, array, 40) == digest.of(array)]
        array[9] = 2
        right += [digests.of(array) == digest.of(array)]
        os._exit(0 if all(right) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert digests.of(array) == digest.of(array)
    array[9] = 3
    assert digests.of(array) == digest.of(array)


def test_several_threads(digests: WatchedDigests) -> None:
    array, rounds, readers = random(), 60, 4
    wrong: list[int] = []
    barrier = threading.Barrier(readers + 1, timeout=60)
    wanted = b""

    def read() -> None:
        for number in range(rounds):
            barrier.wait()
            if any(digests.of(array) != wanted for _ in range(5)):
                wrong.append(number)
            barrier.wait()

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        if number % 7 == 0:
            array[number * 997] += 1
        wanted = digest.of(array)
        barrier.wait()
        barrier.wait()
    for thread in threads:
        thread.join()
    assert wrong == []


def _unavailable(pages: WrittenPages) -> None:
    raise OSError("not allowed")


def _noting_nothing(pages: WrittenPages) -> None:
    pages._has = lambda *_: False  # type: ignore[method-assign]
    pages._control = lambda *_: 0  # type: ignore[method-assign]


@pytest.mark.parametrize("broken", [_unavailable, _noting_nothing])
def test_systems_that_note_nothing(
    digests: WatchedDigests, monkeypatch: pytest.MonkeyPatch, broken: Callable[[WrittenPages], None]
) -> None:
    monkeypatch.setattr(WrittenPages, "_open", broken)
    assert not WrittenPages().available
    array = random()
    met(digests, array, 40)
    assert not digests._watches
    array[70_001] += 1
    assert digests.of(array) == digest.of(array)
