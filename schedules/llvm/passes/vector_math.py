"""Functions of the C library in LLVM's vectors; LLVM itself calls the library lane by lane.

Each takes numbers of any value, NaN and infinities, too, and is within three units in the last place of the exact
value, erfc within five; what is smaller than the least normal number may be rounded more than once.

Polynomials are of least relative error (Remez). Methods: Cody and Waite, Software Manual for the Elementary Functions,
1980; for erfc Shepherd and Laframboise, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x, Mathematics of
Computation 36, 1981.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm_conv3d.schedules.llvm.passes.llvm_values import Code, Value

#: ln 2, and in two parts: multiples of the first by integers up to 2^10 are exact.
_LN2, _LN2_HIGH, _LN2_LOW = 0.6931471805599453, 0.693145751953125, 1.428606765330187e-06

#: (exp(r) - 1 - r) / r^2 for |r| up to ln(2) / 2, and a little beyond.
_EXP = (0.5, 0.16666665673255920, 0.04166623577475548, 0.008333524689078331, 0.0013948981650173664, 0.00019786054326687)

#: ((ln(1 + s) - ln(1 - s)) / s - 2) / s^2, in s^2, for 1 + s over 1 - s between the roots of 1/2 and of 2.
_LOG = (0.6666677638177989, 0.3997754156011362, 0.298717281084921)

#: (1 + 2 y) exp(y^2) erfc(y), in (y - 2) / (y + 2).
_ERFC = (
    1.2769783735275269,
    -0.0927639827132225,
    -0.16603142023086548,
    0.16405534744262695,
    -0.0542043000459671,
    -0.00805987510830164,
    0.008631681092083454,
    0.0013135228073224425,
    -0.0012299276422709227,
    -0.0004005769733339548,
)

#: Bits of the mantissa, and the square root of 1/2 as bits.
_MANTISSA, _ROOT_OF_HALF = 23, 0x3F3504F3


def _exp(code: Code, x: Value) -> Value:
    return _exp_of_sum(code, x, None)


def _expm1(code: Code, x: Value) -> Value:
    """exp(x) - 1 without cancellation."""
    r, power = _reduced(code, _clip(code, x, -80, 89), None)
    # half of the power of two: the whole one may be too large for a number
    half = _power_of_two(power - 1)
    return code.call("fmuladd", _expm1_near_zero(code, r), half, half - 0.5) * 2


def _tanh(code: Code, x: Value) -> Value:
    """Of expm1(-2 |x|), which does not cancel."""
    t = _expm1(code, _magnitude(code, x) * -2)
    negative = t / (t + 2)
    return code.select(x > 0, -negative, negative)


def _log1p(code: Code, x: Value) -> Value:
    """x is scaled by a power of two before one is added, so that little of it is lost."""
    power = ((x + 1).bits() - _ROOT_OF_HALF) >> _MANTISSA
    # in two steps: one power of two may be too small for a number
    half = power >> 1
    first, second = _power_of_two(-half), _power_of_two(half - power)
    near_zero = x * first * second + (first * second - 1)
    logarithm = _log_near_one(code, near_zero) + power.to_float() * _LN2
    # infinite at -1, and no number below; what is neither is infinity or NaN
    others = code.select(x < -1, float("nan"), code.select(x > 0, x, x - float("inf")))
    return code.select(x > -1, code.select(x < float("inf"), logarithm, others), others)


def _erfc(code: Code, x: Value) -> Value:
    """1 - erf(x) without cancellation."""
    y = _clip(code, _magnitude(code, x), 0, 11)
    # half of the bits: its square is exact, and the rest of y^2 is small
    upper = (y.bits() & -(1 << 12)).bits()
    power = _exp_of_sum(code, -(upper * upper), (upper - y) * (upper + y))
    tail = _polynomial(code, (y - 2) / (y + 2), _ERFC) * power / (y * 2 + 1)
    return code.select(x < 0, -tail + 2, tail)


#: Names in the C library, for float32, and what is computed.
FUNCTIONS: dict[str, Callable[[Code, Value], Value]] = {
    "expf": _exp,
    "expm1f": _expm1,
    "tanhf": _tanh,
    "log1pf": _log1p,
    "erfcf": _erfc,
}


def _exp_of_sum(code: Code, x: Value, more: Value | None) -> Value:
    """exp(x + more), where |more| is at most a tenth."""
    r, power = _reduced(code, _clip(code, x, -104, 89), more)
    # in two steps: the result may be too small for one
    half = power >> 1
    return (_expm1_near_zero(code, r) + 1) * _power_of_two(half) * _power_of_two(power - half)


def _reduced(code: Code, x: Value, more: Value | None) -> tuple[Value, Value]:
    """r and the integer n of x + more = n ln 2 + r."""
    n = code.call("nearbyint", x * (1 / _LN2))
    r = code.call("fmuladd", n, -_LN2_LOW, code.call("fmuladd", n, -_LN2_HIGH, x))
    # an integer of NaN is anything: it is made of zero
    return r if more is None else r + more, code.select(n >= -1024, n, 0).to_integer()


def _expm1_near_zero(code: Code, r: Value) -> Value:
    return code.call("fmuladd", r * r, _polynomial(code, r, _EXP), r)


def _log_near_one(code: Code, f: Value) -> Value:
    """ln(1 + f) for 1 + f between the roots of 1/2 and of 2."""
    s = f / (f + 2)
    square = s * s
    return code.call("fmuladd", s * square, _polynomial(code, square, _LOG), s * 2)


def _polynomial(code: Code, x: Value, coefficients: Sequence[float]) -> Value:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    *rest, last = coefficients
    total: Value | float = last
    for coefficient in reversed(rest):
        total = code.call("fmuladd", x, total, coefficient)
    assert isinstance(total, Value)
    return total


def _clip(code: Code, x: Value, low: float, high: float) -> Value:
    # both comparisons are false for NaN, which passes through
    return code.select(x > high, high, code.select(x < low, low, x))


def _magnitude(code: Code, x: Value) -> Value:
    return code.select(x < 0, -x, x)


def _power_of_two(n: Value) -> Value:
    """2 to the power of an integer between -126 and 127."""
    return ((n + 127) << _MANTISSA).bits()
