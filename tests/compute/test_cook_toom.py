"""The short convolutions are exact in rational arithmetic, and their rounding is what the estimate says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tvm_conv3d.compute.shared.cook_toom import amplification, transforms
from tvm_conv3d.compute.shared.winograd_stages import row_sums

SIZES = [(m, r) for r in range(1, 8) for m in range(1, 7) if m + r - 2 <= 11]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_exact(m: int, r: int) -> None:
    """For every unit tap and every unit input: bilinear, so this proves it for all."""
    a, g, b = transforms(m, r)
    n = m + r - 1
    for tap in range(r):
        for cell in range(n):
            products = [g[i][tap] * b[i][cell] for i in range(n)]
            for out in range(m):
                total = sum((a[out][i] * products[i] for i in range(n)), Fraction(0))
                assert total == (1 if out + tap == cell else 0)


def test_as_few_multiplications_as_possible() -> None:
    for m, r in SIZES:
        output, kernel, data = transforms(m, r)
        assert (len(output), len(kernel), len(data), len(data[0])) == (m, m + r - 1, m + r - 1, m + r - 1)


@pytest.mark.parametrize(("m", "r"), [(0, 3), (3, 0), (7, 7)])
def test_what_there_is_not(m: int, r: int) -> None:
    with pytest.raises(ValueError, match="Received"):
        transforms(m, r)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (6, 3), (4, 5), (4, 2)])
def test_amplification_is_what_rounding_does(m: int, r: int) -> None:
    a, g, b = (np.array(matrix, dtype=np.float64) for matrix in transforms(m, r))
    rng = np.random.default_rng(0)
    taps, cells = rng.standard_normal((4000, r)), rng.standard_normal((4000, m + r - 1))
    exact = np.einsum("ji,ni,ni->nj", a, taps @ g.T, cells @ b.T)
    eps = 2.0**-11
    products = (taps @ g.T) * (cells @ b.T)
    noisy = products * (1 + eps * rng.standard_normal(products.shape))
    measured = np.linalg.norm(noisy @ a.T - exact) / np.linalg.norm(exact) / eps
    assert measured == pytest.approx(amplification(m, r), rel=0.1)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_shared_sums_are_the_products(m: int, r: int) -> None:
    """In rational arithmetic: what is written alike for two rows is still the matrix times the values."""
    rng = np.random.default_rng(m * 10 + r)
    for matrix in (transforms(m, r).input, transforms(m, r).output):
        values = [Fraction(int(number)) for number in rng.integers(-9, 10, len(matrix[0]))]
        expected = [sum((a * v for a, v in zip(row, values, strict=True)), Fraction(0)) for row in matrix]
        assert row_sums(matrix, values, Fraction) == expected


@pytest.mark.parametrize(("m", "r", "stride"), [(2, 3, 2), (4, 3, 2), (3, 7, 2), (4, 5, 3), (2, 2, 3), (6, 4, 2)])
def test_strided_is_exact(m: int, r: int, stride: int) -> None:
    """For every unit tap and every unit input, with a product for each input."""
    a, g, b = transforms(m, r, stride)
    cells = (m - 1) * stride + r
    if r >= stride:
        assert len(b) == cells
    for tap in range(r):
        for cell in range(cells):
            products = [g[i][tap] * b[i][cell] for i in range(len(b))]
            for out in range(m):
                total = sum((x * p for x, p in zip(a[out], products, strict=True)), Fraction(0))
                assert total == (1 if out * stride + tap == cell else 0)
