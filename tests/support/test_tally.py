"""Counts of what was done here and what was left to others."""

from __future__ import annotations

import threading

from tvm_conv3d.support.tally import Tally


def test_reasons_count_apart_the_most_usual_first() -> None:
    tally = Tally()
    tally.count_ours()
    for reason in ("a", "b", "b"):
        tally.count_theirs(reason)
    assert tally.read() == (1, {"b": 2, "a": 1})
    assert list(tally.read()[1]) == ["b", "a"]
    tally.reset()
    assert tally.read() == (0, {})


def test_reasons_have_an_end() -> None:
    tally = Tally()
    for number in range(1000):
        tally.count_theirs(f"size {number}")
    _, reasons = tally.read()
    assert len(reasons) < 300
    assert sum(reasons.values()) == 1000


def test_threads_count_together() -> None:
    tally = Tally()
    threads = [threading.Thread(target=lambda: [tally.count_ours() for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.read() == (4000, {})
