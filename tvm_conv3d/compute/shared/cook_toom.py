"""Short convolutions with few multiplications, in exact arithmetic.

F(m, r) computes m outputs of a correlation with r taps by m + r - 1 multiplications:

    y = A^T [ (G g) * (B^T d) ]

The method is Toom and Cook's (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, 2016), interpolating at small rational points and infinity. The points decide the
rounding (Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution for DNNs, 2020): here those
with the least :func:`amplification` among multiples of 1/8, in pairs of opposite sign, which share half of their sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

#: Finite points by their number.
_POINTS = (
    (),
    ("0",),
    ("1", "-1"),
    ("0", "1", "-1"),
    ("0", "3/4", "-3/4", "2"),
    ("0", "3/2", "-3/2", "5/8", "-5/8"),
    ("0", "7/8", "-7/8", "7/4", "-7/4", "3/8"),
    ("0", "1", "-1", "1/2", "-1/2", "2", "-2"),
    ("0", "3/4", "-3/4", "5/4", "-5/4", "5/2", "-5/2", "1/4"),
    ("0", "5/4", "-5/4", "3/8", "-3/8", "7/8", "-7/8", "5/2", "-5/2"),
    ("0", "1", "-1", "1/2", "-1/2", "2", "-2", "1/4", "-1/4", "4"),
    ("0", "1", "-1", "1/2", "-1/2", "2", "-2", "1/4", "-1/4", "4", "-4"),
)

#: Largest m + r of F(m, r).
MAX_TAPS_AND_OUTPUTS = len(_POINTS) + 1

Matrix = tuple[tuple[Fraction, ...], ...]


class Transforms(NamedTuple):
    """The matrices of F(m, r), with n = m + r - 1.

    Attributes:
        output: A^T, (m, n).
        kernel: G, (n, r).
        input: B^T, (n, n).
    """

    output: Matrix
    kernel: Matrix
    input: Matrix


@functools.cache
def transforms(m: int, r: int, stride: int = 1) -> Transforms:
    """The matrices of F(m, r), or of its like for outputs that are `stride` inputs apart.

    A strided correlation is the sum of `stride` correlations without stride, each of every stride-th input and tap
    (its polyphase decomposition): the products of all are numbered together, and there are as many as inputs.

    Raises:
        ValueError: m or r is below 1, or there are no points for so many outputs and taps.
    """
    return _toom_cook(m, r) if stride == 1 else _polyphase(m, r, stride)


def _polyphase(m: int, r: int, stride: int) -> Transforms:
    inputs = (m - 1) * stride + r
    output: list[list[Fraction]] = [[] for _ in range(m)]
    kernel, data = [], []
    for phase in range(min(stride, r)):
        taps = -(-(r - phase) // stride)
        part = _toom_cook(m, taps) if taps > 1 else _scaling(m)
        kernel += [_spread(row, phase, stride, r) for row in part.kernel]
        data += [_spread(row, phase, stride, inputs) for row in part.input]
        for row, more in zip(output, part.output, strict=True):
            row += more
    return Transforms(_freeze(output), _freeze(kernel), _freeze(data))


def _scaling(m: int) -> Transforms:
    """F(m, 1) without a transform: a product for each output."""
    identity = _freeze([[Fraction(i == j) for j in range(m)] for i in range(m)])
    return Transforms(identity, ((Fraction(1),),) * m, identity)


def _spread(row: Sequence[Fraction], first: int, step: int, length: int) -> list[Fraction]:
    """A row of `length` with the entries of `row` at every step-th place."""
    wide = [Fraction(0)] * length
    wide[first : first + step * len(row) : step] = row
    return wide


def _toom_cook(m: int, r: int) -> Transforms:
    finite = m + r - 2
    if m < 1 or r < 1 or m + r > MAX_TAPS_AND_OUTPUTS:
        raise ValueError(f"F(m, r) needs 1 <= m, r and m + r <= {MAX_TAPS_AND_OUTPUTS}. Received: m={m}, r={r}")
    points = tuple(map(Fraction, _POINTS[finite]))
    zero, one = Fraction(0), Fraction(1)
    output = [[p**row for p in points] + [one if row == m - 1 else zero] for row in range(m)]
    kernel, data = [], []
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        scale = math.prod((p - q for q in others), start=one)
        kernel.append([p**k / scale for k in range(r)])
        data.append([*_from_roots(others), zero])
    kernel.append([zero] * (r - 1) + [one])
    data.append(list(_from_roots(points)))
    return Transforms(_freeze(output), _freeze(kernel), _freeze(data))


@functools.cache
def amplification(m: int, r: int, stride: int = 1) -> float:
    """How much more rounding :func:`transforms` show than the plain sum, for inputs and weights of equal variance.

    The variance of the products' rounding in an output, against the output's own: sqrt(mean_j sum_i A_ji^2 |G_i|^2
    |B_i|^2 / r). Along several axes the factors multiply.
    """
    a, g, b = (np.array(matrix, dtype=np.float64) for matrix in transforms(m, r, stride))
    products = (g**2).sum(1) * (b**2).sum(1)
    return float(np.sqrt((a**2 @ products).mean() / r))


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of prod (x - root), lowest degree first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _freeze(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
