"""The error function in NumPy.

W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969), 631-637:
three rational functions, on |x| <= 0.46875, up to 4, and beyond, good to the last places of float64.
"""

from __future__ import annotations

import math

import numpy as np

_SMALL = 0.46875
_LARGE = 4.0
#: Beyond this, erfc is below the smallest float64.
_VANISHING = 27.3
_SMALL_TOP = (
    1.85777706184603153e-1,
    3.16112374387056560,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_SMALL_BOTTOM = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_MIDDLE_TOP = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_MIDDLE_BOTTOM = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)
_LARGE_TOP = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_LARGE_BOTTOM = (
    1.0,
    2.56852019228982242,
    1.87295284992346725,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function of a float64 array."""
    x = np.asarray(x, np.float64)
    return np.where(np.abs(x) <= _SMALL, _erf_small(x), np.sign(x) * (1 - _erfc_positive(np.abs(x))))


def erfc(x: np.ndarray) -> np.ndarray:
    """`1 - erf(x)` of a float64 array, without cancellation for large x."""
    x = np.asarray(x, np.float64)
    tail = _erfc_positive(np.abs(x))
    return np.where(np.abs(x) <= _SMALL, 1 - _erf_small(x), np.where(x < 0, 2 - tail, tail))


def _erf_small(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -_SMALL, _SMALL)
    return x * _ratio(_SMALL_TOP, _SMALL_BOTTOM, x * x)


def _erfc_positive(y: np.ndarray) -> np.ndarray:
    """erfc for y > 0.46875; values below are answered as if there."""
    y = np.clip(y, _SMALL, _VANISHING)
    middle = _ratio(_MIDDLE_TOP, _MIDDLE_BOTTOM, np.minimum(y, _LARGE))
    square = 1 / np.square(np.maximum(y, _LARGE))
    large = (1 / math.sqrt(math.pi) - square * _ratio(_LARGE_TOP, _LARGE_BOTTOM, square)) / y
    # exp(-y * y) in two factors: the rounding error of y * y would be magnified by the exponential.
    coarse = np.trunc(y * 16) / 16
    decay = np.exp(-coarse * coarse) * np.exp(-(y - coarse) * (y + coarse))
    return decay * np.where(y <= _LARGE, middle, large)


def _ratio(top: tuple[float, ...], bottom: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    return np.polyval(top, x) / np.polyval(bottom, x)
