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


def test_as_much_is_kept_as_was_used_at_once() -> None:
    store = output_pool._Store()
    size = output_pool.MIN_KEPT // 4
    for count in (6, 1):
        blocks = [store.take(size) for _ in range(count)]
        del blocks
        assert store.kept() == 6 * size
    # what was long ago does not count
    for _ in range(2 * output_pool._LATELY):
        store.take(64)
    assert store.kept() <= store.limit == output_pool.MIN_KEPT


def test_small_results_lie_where_a_large_one_lay() -> None:
    store = output_pool._Store()
    size = 16 << 20
    large = store.take(4 * size)
    begin = address(large)
    del large
    small = [store.take(size) for _ in range(4)]
    assert sorted(address(each) - begin for each in small) == [0, size, 2 * size, 3 * size]
    # what is beside each other is one again, in whatever order it comes back
    for number in (2, 0, 3, 1):
        small[number] = None
    assert address(store.take(4 * size)) == begin
    assert store.kept() == 4 * size


def test_the_smallest_place_is_taken() -> None:
    store = output_pool._Store()
    blocks = [store.take(size << 20) for size in (8, 2, 4)]
    places = [address(block) for block in blocks]
    del blocks
    assert [address(store.take(size << 20)) for size in (2, 3, 5)] == [places[1], places[2], places[0]]


def test_what_is_held_keeps_no_more_than_its_block() -> None:
    store = output_pool._Store()
    blocks = [store.take(8 << 20) for _ in range(3)]
    del blocks
    held = store.take(1 << 20)
    held[...] = 3
    store.let_go(0)
    # the rest of its block waits for other results
    assert store._kept == 7 << 20
    others = [store.take(1 << 20) for _ in range(9)]
    for other in others:
        other[...] = 0
    assert (held == 3).all()
    assert len(store._blocks) == 3
    del held, other, others
    store.let_go(0)
    assert (store._kept, store._used, store._blocks) == (0, 0, [])


def test_results_of_any_sizes_never_share_memory() -> None:
    store = output_pool._Store()
    rng = np.random.default_rng(0)
    held: list[tuple[int, np.ndarray]] = []
    for number in range(600):
        if held and rng.random() < 0.5:
            value, array = held.pop(int(rng.integers(len(held))))
            assert (array == value).all()
            del array
        else:
            array = store.take(int(rng.integers(1, 40000)))
            assert address(array) % 64 == 0
            array[...] = number % 251
            held.append((number % 251, array))
    assert all((array == value).all() for value, array in held)
    del array, held
    assert store.kept() == sum(block.memory.nbytes for block in store._blocks)
    assert store._used == 0 and all(block.unused for block in store._blocks)


def test_not_all_of_the_machine_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_pool, "_machine_bytes", lambda: 4 * output_pool.MIN_KEPT)
    store = output_pool._Store()
    size = output_pool.MIN_KEPT // 4
    blocks = [store.take(size) for _ in range(6)]
    # those above the limit never come back
    assert len(store._lent) == 4
    del blocks
    assert store.kept() == store.limit == output_pool.MIN_KEPT


@pytest.fixture
def _usual_limit() -> Iterator[None]:
    yield
    output_pool._store.most = None


@pytest.mark.usefixtures("_usual_limit")
def test_the_user_bounds_what_is_kept() -> None:
    set_kept_memory(0)
    assert output_pool._store.kept() == 0
    array = output_pool.empty(SHAPE, FLOAT)
    del array
    gc.collect()
    assert output_pool._store.kept() == 0
    set_kept_memory(8 << 20)
    arrays = [output_pool.empty(SHAPE, FLOAT) for _ in range(3)]
    del arrays
    gc.collect()
    assert output_pool._store.kept() == 8 << 20
    output_pool._store.renew()
    assert (output_pool._store.most, output_pool._store.kept()) == (8 << 20, 0)


@pytest.mark.parametrize("most", [-1, 1.5, "1", True, None])
def test_bad_bounds(most: object) -> None:
    with pytest.raises(ValueError, match=r"bytes.*Received"):
        set_kept_memory(most)  # type: ignore[arg-type]


def test_kept_memory_is_given_up_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    store = output_pool._Store()
    store.take(4 << 20)
    assert store.kept() == 4 << 20
    real = np.empty

    def scarce(*arguments: object) -> np.ndarray:
        if store._kept:
            raise MemoryError
        return real(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(output_pool.np, "empty", scarce)
    assert store.take(5 << 20).nbytes == 5 << 20


def test_what_no_memory_is_left_for_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    store = output_pool._Store()

    def none(*arguments: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(output_pool.np, "empty", none)
    with pytest.raises(MemoryError):
        store.take(5 << 20)
    assert store._used == 0


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
