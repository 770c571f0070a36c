"""Weights that come without a version: told by their content, kept with their packed forms, and bounded."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from functional_cases import CHANNELS, FILTERS, KERNEL, RNG, VIEWS, check, data, expected
from problems import WINOGRAD_BOUND
from tvm_conv3d import conv3d, set_kept_weights
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import kept_weights, structure
from tvm_conv3d.runtime.kept_weights import Store
from tvm_conv3d.spec import CHANNELS_FIRST


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """In place of the process's, with nothing in it."""
    store = Store()
    monkeypatch.setattr(kept_weights, "STORE", store)
    return store


@pytest.mark.parametrize("change", ["in place", "a view", "bias", "back"])
def test_changed_weights_are_seen(change: str) -> None:
    x, w, b = data()
    before = conv3d(x, w, b)
    check(before, expected(x, w, b))
    if change == "in place":
        w *= 2
    elif change == "a view":
        w.reshape(-1)[-1:] += 1
    elif change == "bias":
        b[3] += 1
    else:
        kept = w.copy()
        w[...] = 0
        check(conv3d(x, w, b), expected(x, w, b))
        w[...] = kept
        np.testing.assert_array_equal(conv3d(x, w, b), before)
    check(conv3d(x, w, b), expected(x, w, b))


def test_torchs_ways_to_change_weights_are_seen() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, _ = data(data_format=CHANNELS_FIRST)
    module = torch.nn.Conv3d(CHANNELS, FILTERS, KERNEL)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def step() -> None:
        module(torch.from_numpy(x)).square().mean().backward()
        optimizer.step()

    def assign() -> None:
        module.weight.data = torch.from_numpy(np.ascontiguousarray(w.transpose(4, 3, 0, 1, 2)))

    changes = [
        step,
        lambda: module.weight.data.add_(1),
        lambda: module.weight.detach().numpy().__imul__(3),
        lambda: module.bias.data.zero_(),
        assign,
    ]
    for change in (lambda: None, *changes):
        change()
        with torch.no_grad():
            result = conv3d(
                torch.from_numpy(x), module.weight.permute(2, 3, 4, 1, 0), module.bias, data_format=CHANNELS_FIRST
            )
            torch.testing.assert_close(result, module(torch.from_numpy(x)), rtol=1e-4, atol=1e-5)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that were looked at, as each of a new content is."""
    kernels: list[Any] = []
    real = structure.structured
    monkeypatch.setattr(structure, "structured", lambda kernel: kernels.append(kernel.copy()) or real(kernel))
    return kernels


@pytest.mark.usefixtures("store")
def test_contents_are_packed_and_looked_at_once(looked: list[Any]) -> None:
    x, w, b = data()
    for kernel in (w, w.copy(), np.asfortranarray(w).copy("C"), w + 1, w):
        conv3d(x, kernel, b)
    assert len(looked) == 2
    forms = [kept.packed.values() for kept in kept_weights.STORE._entries.values()]
    assert [len(found) for found in forms] == [1, 1]
    # of another type they are other weights; and so are they in other groups, whatever their bytes
    conv3d(x.astype(np.float64), w, b)
    assert len(looked) == 3
    both = np.concatenate([x, x], axis=-1)
    check(conv3d(both, w, b, groups=2), expected(both, w, b, groups=2))
    assert len(looked) == 4


def test_arrays_of_any_strides_are_found_again(store: Store) -> None:
    x, w, b = data()
    for view in VIEWS.values():
        before = len(store)
        conv3d(x, view(w), b)
        there = len(store)
        conv3d(x, view(w), b)
        assert len(store) == there <= before + 1


def test_structured_kernels_keep_their_exactness() -> None:
    x = RNG.integers(-8, 8, (1, 8, 16, 16, 16)).astype(np.float32)
    box = np.ones((3, 3, 3, 16, 16), np.float32)
    result = conv3d(x, box, padding=1)
    np.testing.assert_array_equal(result, expected(x, box, None, ((1, 1),) * 3))


def test_what_is_kept_is_bounded(looked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # all of mixed signs, so that all take one plan
    x, w, b = data()
    store = Store(max_bytes=1 << 40, max_entries=3)
    monkeypatch.setattr(kept_weights, "STORE", store)
    for number in range(5):
        conv3d(x, w * (1 + number), b)
    assert len(store) == 3
    one = store.nbytes // 3
    assert one >= w.nbytes + b.nbytes
    set_kept_weights(2 * one)
    assert len(store) == 2
    conv3d(x, w * 4, b)  # the longest unused goes, not this one
    conv3d(x, w * 10, b)
    del looked[:]
    for number in (4, 10, 5):
        conv3d(x, w * number, b)
    assert [np.array_equal(kernel, w * 5) for kernel in looked] == [True]
    set_kept_weights(0)
    for number in range(3):
        check(conv3d(x, w * (1 + number), b), expected(x, w * (1 + number), b))
    assert len(store) == 1
    with pytest.raises(ValueError, match="number of bytes"):
        set_kept_weights(-1)


def test_packed_forms_are_of_their_content_whatever_callers_write(store: Store) -> None:
    """Another thread may write between the look at a known content and the packing of a further form of it."""
    _, w, b = data()
    first = store.get(w, b, "float32", "a test")
    known, unchanged = (store.get(w, b, "float32", "a test") for _ in range(2))
    assert known.shapes == first.shapes
    np.testing.assert_array_equal(unchanged.kernel, w)
    assert (known.packed, unchanged.at_hand().packed) == (first.packed, first.packed)
    w[...] = 0
    at_hand = known.at_hand()
    assert not at_hand.kernel.any() and at_hand.packed is not first.packed
    w[...] = 1
    assert not known.kernel.any() and known.bias is not None and np.array_equal(known.bias, b)


@pytest.mark.usefixtures("store")
def test_nothing_but_packed_forms_is_kept() -> None:
    w = RNG.standard_normal((1, 1, 1, 512, 512), np.float32)
    x = RNG.standard_normal((1, 1, 1, 8, 512), np.float32)
    conv3d(x, w[..., :8].copy())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for kernel in (w, w.transpose(0, 1, 2, 4, 3)):
            conv3d(x, kernel)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 * w.nbytes <= after - before <= 2.5 * w.nbytes


def test_many_threads_with_weights_of_their_own() -> None:
    x, w, b = data()
    kernels = [w + number for number in range(6)]
    wanted = [expected(x, kernel, b) for kernel in kernels]
    barrier = threading.Barrier(6)

    def work(number: int) -> float:
        barrier.wait(60)
        mine = kernels[number].copy()
        worst = 0.0
        for step in range(40):
            which = (number + step) % len(kernels)
            mine[...] = kernels[which]
            worst = max(worst, oracle.relative_error(conv3d(x, mine, b), wanted[which]))
        return worst

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(work, range(6))) < WINOGRAD_BOUND
