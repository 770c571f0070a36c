"""Maxima with their cells, and gradients passed back, beside NumPy's loops over windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvm_conv3d.functional import training

#: Shape of the input, and window.
CASES = [
    ((2, 4, 6, 8, 16), (2, 2, 2)),
    ((1, 5, 7, 9, 37), (2, 2, 2)),
    ((2, 3, 7, 5, 3), (1, 3, 2)),
    ((1, 4, 4, 4, 1), (4, 4, 4)),
    ((3, 1, 1, 300, 33), (1, 1, 256)),
]


def windows(x: np.ndarray, window: tuple[int, ...]) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
    """The cells of each window, (..., cells), and where these lie in `x`, cell by cell."""
    counts = [cells // taps for cells, taps in zip(x.shape[1:4], window, strict=True)]
    places = [
        (slice(None), *(slice(tap, tap + n * taps, taps) for tap, n, taps in zip(at, counts, window, strict=True)))
        for at in itertools.product(*map(range, window))
    ]
    return np.stack([x[place] for place in places], axis=-1), places


def sample(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """With many equal numbers."""
    return np.round(np.random.default_rng(1).standard_normal(shape), 1).astype(dtype)


@pytest.mark.parametrize("dtype", training.DTYPES)
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_maxima_and_their_gradient(shape: tuple[int, ...], window: tuple[int, int, int], dtype: str) -> None:
    x = sample(shape, dtype)
    maxima, cells = training.max_pool(x, window)
    values, places = windows(x, window)
    np.testing.assert_array_equal(maxima, values.max(-1))
    np.testing.assert_array_equal(cells, values.argmax(-1))
    gradient = sample(maxima.shape, dtype)
    found = training.max_pool_gradient(gradient, cells, shape[1:4], window)
    expected = np.zeros_like(x)
    for number, place in enumerate(places):
        expected[place] = np.where(values.argmax(-1) == number, gradient, 0)
    np.testing.assert_array_equal(found, expected)


def test_results_in_memory_that_is_given() -> None:
    x, window = sample((1, 5, 7, 9, 37), "float32"), (2, 2, 2)
    right = training.max_pool(x, window)
    given = np.full_like(right[0], np.nan), np.full_like(right[1], 99)
    for found, memory, wanted in zip(training.max_pool(x, window, given), given, right, strict=True):
        assert found is memory
        np.testing.assert_array_equal(memory, wanted)
    whole = np.full_like(x, np.nan)
    assert training.max_pool_gradient(*right, (5, 7, 9), window, whole) is whole
    np.testing.assert_array_equal(whole, training.max_pool_gradient(*right, (5, 7, 9), window))


def test_maxima_of_infinities_and_nan() -> None:
    x = np.full((1, 2, 2, 4, 17), -np.inf, np.float32)
    x[0, 0, 1, 0, ::2] = np.nan
    x[0, 1, 1, 1, ::3] = np.inf
    maxima, cells = training.max_pool(x, (2, 2, 2))
    values, _ = windows(x, (2, 2, 2))
    np.testing.assert_array_equal(maxima, values.max(-1))
    np.testing.assert_array_equal(cells, values.argmax(-1))


@pytest.mark.parametrize("dtype", training.DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 5), (1, 3, 40, 50, 37), (0, 1, 1, 1, 2)])
def test_the_gradient_of_a_relu(shape: tuple[int, ...], dtype: str) -> None:
    y, gradient = sample(shape, dtype), sample(shape, dtype) + 1
    np.testing.assert_array_equal(training.relu_gradient(y, gradient), np.where(y > 0, gradient, 0))


def test_windows_of_more_cells_than_a_byte_counts_are_not_taken() -> None:
    assert training.takes("float32", (4, 8, 8)) and not training.takes("float32", (4, 8, 9))
    assert not training.takes("float16", (2, 2, 2))
