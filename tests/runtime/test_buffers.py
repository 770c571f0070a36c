"""Memory of results is used again, but never while anything can still see it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tvm_conv3d import set_kept_memory
from tvm_conv3d.runtime import output_pool

SHAPE = (4, 1 << 18)
FLOAT = np.dtype(np.float32)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_nobody_holds_it() -> None:
    first = output_pool.empty(SHAPE, FLOAT)
    place = address(first)
    del first
    gc.collect()
    assert address(output_pool.empty(SHAPE, FLOAT)) == place


def test_a_view_keeps_the_memory() -> None:
    first = output_pool.empty(SHAPE, FLOAT)
    first[...] = 7
    view = first[1:2, ::3].T
    del first
    gc.collect()
    others = [output_pool.empty(SHAPE, FLOAT) for _ in range(3)]
    for other in others:
        assert not np.shares_memory(other, view)
        other[...] = 0
    assert (view == 7).all()


def test_arrays_are_plain() -> None:
    array = output_pool.empty((3, 1 << 19), np.dtype(np.float16))
    assert array.shape == (3, 1 << 19)
    assert array.dtype == np.float16
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert output_pool.empty((2, 0, 3), FLOAT).shape == (2, 0, 3)


def test_little_is_kept() -> None:
    store = output_pool._Store()
    blocks = [np.empty(output_pool.MAX_KEPT // 4, np.uint8) for _ in range(6)]
    for block in blocks:
        store.put_back(block)
    assert store._kept <= output_pool.MAX_KEPT
    assert sum(len(free) for free in store._free.values()) == 4


@pytest.fixture
def _usual_limit() -> Iterator[None]:
    yield
    set_kept_memory(output_pool.MAX_KEPT)


@pytest.mark.usefixtures("_usual_limit")
def test_the_user_bounds_what_is_kept() -> None:
    set_kept_memory(0)
    assert output_pool._store._kept == 0
    array = output_pool.empty(SHAPE, FLOAT)
    del array
    gc.collect()
    assert output_pool._store._kept == 0
    set_kept_memory(8 << 20)
    arrays = [output_pool.empty(SHAPE, FLOAT) for _ in range(3)]
    del arrays
    gc.collect()
    assert output_pool._store._kept == 8 << 20
    output_pool._store.renew()
    assert (output_pool._store.most, output_pool._store._kept) == (8 << 20, 0)


@pytest.mark.parametrize("most", [-1, 1.5, "1", True, None])
def test_bad_bounds(most: object) -> None:
    with pytest.raises(ValueError, match=r"bytes.*Received"):
        set_kept_memory(most)  # type: ignore[arg-type]


def test_kept_memory_is_given_up_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    store = output_pool._Store()
    store.put_back(np.empty(4 << 20, np.uint8))
    real = np.empty

    def scarce(*arguments: object) -> np.ndarray:
        if store._kept:
            raise MemoryError
        return real(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(output_pool.np, "empty", scarce)
    assert store.take(5 << 20).nbytes == 5 << 20


def test_threads_never_share() -> None:
    def work(number: int) -> None:
        for _ in range(50):
            array = output_pool.empty(SHAPE, FLOAT)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)

    wrong: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
