"""Kernels whose values carry exact meaning: boxes, morphology, Laplace, Gauss, Sobel, counts, shifts.

Of such a kernel users rely on what the definition's products keep and Winograd's rounding loses: zeros where nothing is
seen, signs, whole numbers. What makes them out is that their values have few bits, or that all of a filter have one
sign. Trained and randomly drawn weights have neither, those of half types and pruned ones included:

- The significands of bfloat16 have 8 bits, of which values below the largest would have to leave ever more unused to
  be multiples of one unit with 7: of 20 random values all do with a chance of about 3^-19, 1e-9; of more bits, less.
- The signs of 20 random values agree with a chance of 2^-19; but filters are not random: among those of few channels
  one that smooths is no rarity, while all of a layer are one of structure.
"""

from __future__ import annotations

import math

import numpy as np

from tvm_conv3d.runtime import exit_guard

#: Bits of the largest multiple in a filter of few bits: Laplace over 26 neighbours needs 5, Sobel on 5x5x5 needs 7.
_BITS = 7

#: Nonzero values of a filter from which on few bits are no accident, so that it speaks for the whole layer.
_TELLING = 20

#: The smallest normal number of float16: below it, dying filters of half types have few bits.
_MIN_NORMAL = 2.0**-14

#: Relative rounding of two float32 values and their quotient.
_ROUNDING = 2.0**-22

#: Values of each filter that are looked at first, and filters that are looked at together.
_SAMPLE, _TOGETHER = 256, 16


def structured(kernel: np.ndarray) -> bool:
    """Whether a kernel's values carry exact meaning, so that it is to be convolved by the products of the definition.

    It is where every filter that is not all zero has values of one sign only, or of few bits: multiples, up to 127, of
    one power of two or of the filter's smallest magnitude. It is, too, where any filter of 20 nonzero values has few
    bits.

    Args:
        kernel: (depth, height, width, channels / groups, filters), of a floating type.

    Returns:
        The answer; False where there is nothing to choose: of a single tap, of float64, of zeros only.
    """
    # NumPy's loops are compiled code, too
    with exit_guard.in_flight():
        return _structured(kernel)


def _structured(kernel: np.ndarray) -> bool:
    if kernel.dtype.itemsize > 4 or math.prod(kernel.shape[:3]) == 1 or kernel.size == 0:
        return False
    values = kernel.reshape(-1, kernel.shape[-1])
    if kernel.dtype != np.float32:
        values = values.astype(np.float32)
    low, high = values.min(axis=0), values.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return False
    largest = np.maximum(-low, high)
    alive = np.flatnonzero(largest)
    one_sign = (low >= 0) | (high <= 0)
    candidates = alive[_may_have_few_bits(values[:_SAMPLE, alive], largest[alive])]
    every = bool(alive.size) and bool(one_sign[np.setdiff1d(alive, candidates)].all())
    for start in range(0, len(candidates), _TOGETHER):
        some = candidates[start : start + _TOGETHER]
        few, telling = _few_bits(values[:, some], largest[some])
        if telling.any():
            return True
        every = every and bool((few | one_sign[some]).all())
    return every


def _may_have_few_bits(sample: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """False for filters (the columns) of which some values show that the largest has too many bits beside them."""
    smallest = _smallest(sample)
    # a power of two that divides the smallest magnitude is no larger than it
    return np.asarray(largest < smallest * 2.0**_BITS)


def _few_bits(values: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which filters (the columns) have values of few bits, and of which this is no accident."""
    values = values.astype(np.float64)
    _, exponent = np.frexp(largest)
    multiples = np.ldexp(values, _BITS - exponent)
    of_power = (multiples == np.rint(multiples)).all(axis=0)
    multiples = values / _smallest(values)
    whole = np.rint(multiples)
    of_smallest = (np.abs(multiples - whole) <= _ROUNDING * np.abs(whole)).all(axis=0)
    of_smallest &= np.abs(whole).max(axis=0) < 2**_BITS
    few = of_power | of_smallest
    telling = few & (np.count_nonzero(values, axis=0) >= _TELLING) & (largest >= _MIN_NORMAL)
    return few, telling


def _smallest(values: np.ndarray) -> np.ndarray:
    """The smallest magnitude but zero in each column, infinity where there is none."""
    magnitudes = np.abs(values)
    return np.where(magnitudes > 0, magnitudes, np.inf).min(axis=0)
