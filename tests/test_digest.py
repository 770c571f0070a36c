"""Digests: equal for equal bytes, different for others wherever they differ."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_conv3d import digest


def test_digests_tell_contents_apart() -> None:
    rng = np.random.default_rng(1)
    for size in (0, 1, 3, 8, 255, 256, 257, 5000, (1 << 16) + 1, 300_001):
        octets = rng.integers(0, 256, size, np.uint8)
        found = digest.of(octets)
        assert digest.of(np.frombuffer(b"\0" + octets.tobytes(), np.uint8)[1:]) == found
        assert digest.of(np.append(octets, np.uint8(0))) != found
        places = {int(place) for place in np.linspace(0, size - 1, 60)} if size else set()
        others = set()
        for place in places:
            for bit in (0, 7):
                octets[place] ^= 1 << bit
                others.add(digest.of(octets))
                octets[place] ^= 1 << bit
        assert len(others - {found}) == 2 * len(places)


@pytest.mark.parametrize("distance", [8, 256, 1 << 16])
def test_digests_depend_on_places(distance: int) -> None:
    """Words that change places, or signs that change in pairs, as far apart as words of one lane are."""
    values = np.random.default_rng(2).standard_normal(1 << 16)
    swapped, negated = values.copy(), values.copy()
    other = distance // 8
    swapped[[0, other]] = values[[other, 0]]
    negated[[0, other]] *= -1
    assert len({digest.of(a) for a in (values, swapped, negated, np.roll(values, other))}) == 4


def test_digests_mix_all_bits() -> None:
    """A changed bit changes half of the digest's, wherever it is."""
    octets = np.random.default_rng(3).integers(0, 256, 3000, np.uint8)
    found = int.from_bytes(digest.of(octets), "little")
    flips = []
    for place in range(0, 3000, 7):
        octets[place] ^= 0x80
        flips.append(bin(found ^ int.from_bytes(digest.of(octets), "little")).count("1"))
        octets[place] ^= 0x80
    assert 30 < np.mean(flips) < 34
    assert min(flips) > 10


@pytest.mark.parametrize(
    ("array", "dense"),
    [
        (np.zeros((2, 3, 4)), True),
        (np.zeros((2, 3, 4)).transpose(2, 0, 1), True),
        (np.zeros((2, 1, 4)).transpose(2, 0, 1), True),
        (np.zeros((2, 3, 4))[:, ::-1], False),
        (np.zeros((2, 3, 4))[:, :2], False),
        (np.broadcast_to(np.zeros(4), (3, 4)), False),
        (np.zeros((0, 3)), True),
    ],
)
def test_dense_arrays(array: np.ndarray, dense: bool) -> None:
    assert digest.is_dense(array) is dense
