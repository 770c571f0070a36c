"""The activations with an elementwise form, as TE expressions applied to a sum before it is stored.

Every name of `spec.FUSED_ACTIVATIONS` has its formula here; they are Keras's. Formulas are written so that values up
to 1e15 do not overflow on the way to a finite result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

Expr = Any  # a TVM expression; its classes are not public names


def activate(name: str, x: Expr) -> Expr:
    """`name`(x), element by element; `x` is of type float32 or float64."""
    return _FORMULAS[name](x)


def _c(value: float, x: Expr) -> Expr:
    return tirx.const(value, str(x.ty.dtype))


def _libm(name: str, x: Expr, *more: Expr) -> Expr:
    """A function of the C library, in the precision of `x`."""
    suffix = "f" if str(x.ty.dtype) == "float32" else ""
    return tirx.call_pure_extern(str(x.ty.dtype), name + suffix, x, *more)


def _maximum(x: Expr, low: float) -> Expr:
    # the comparison is false for NaN, which must pass through as it does in Keras
    return tirx.Select(x < _c(low, x), _c(low, x), x)


def _clip(x: Expr, low: float, high: float) -> Expr:
    return tirx.Select(x > _c(high, x), _c(high, x), _maximum(x, low))


def _where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    return tirx.Select(condition, yes, no)


def _exp(x: Expr) -> Expr:
    return _libm("exp", x)


def _negative_part(x: Expr) -> Expr:
    return _where(x > _c(0, x), _c(0, x), x)


def _elu(x: Expr) -> Expr:
    return _where(x > _c(0, x), x, _libm("expm1", _negative_part(x)))


def _selu(x: Expr) -> Expr:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return _c(scale, x) * _where(x > _c(0, x), x, _c(alpha, x) * _libm("expm1", _negative_part(x)))


def _sigmoid(x: Expr) -> Expr:
    return _c(1, x) / (_c(1, x) + _exp(-x))


def _softplus(x: Expr) -> Expr:
    magnitude = _where(x < _c(0, x), -x, x)
    return _maximum(x, 0) + _libm("log1p", _exp(-magnitude))


def _gelu(x: Expr) -> Expr:
    return _c(0.5, x) * x * _libm("erfc", _c(-math.sqrt(0.5), x) * x)


def _hard_sigmoid(x: Expr) -> Expr:
    return _clip(x * _c(1 / 6, x) + _c(0.5, x), 0, 1)


def _sparse_plus(x: Expr) -> Expr:
    middle = _c(0.25, x) * (x + _c(1, x)) * (x + _c(1, x))
    return _where(x <= _c(-1, x), _c(0, x), _where(x < _c(1, x), middle, x))


def _times_sigmoid(x: Expr) -> Expr:
    # x / (1 + inf) is -0 for every very negative x except -inf itself, where it is NaN, as in Keras
    return x / (_c(1, x) + _exp(-x))


def _between(x: Expr, low: float, high: float) -> Expr:
    return tirx.all(x >= _c(low, x), x <= _c(high, x))


def _soft_shrink(x: Expr) -> Expr:
    outside = _where(x > _c(0, x), x - _c(0.5, x), x + _c(0.5, x))
    return _where(_between(x, -0.5, 0.5), _c(0, x), outside)


def _squareplus(x: Expr) -> Expr:
    root = tirx.sqrt(x * x + _c(4, x))
    # x + root cancels for negative x: the product of the two solutions is 1
    return _where(x < _c(0, x), _c(2, x) / (root - x), _c(0.5, x) * (x + root))


_FORMULAS: dict[str, Callable[[Expr], Expr]] = {
    "linear": lambda x: x,
    "relu": lambda x: _maximum(x, 0),
    "relu6": lambda x: _clip(x, 0, 6),
    "leaky_relu": lambda x: _where(x < _c(0, x), _c(0.2, x) * x, x),
    "elu": _elu,
    "celu": _elu,  # Keras's default alpha is 1, where the two agree
    "selu": _selu,
    "gelu": _gelu,
    "silu": _times_sigmoid,
    "mish": lambda x: x * _libm("tanh", _softplus(x)),
    "sigmoid": _sigmoid,
    "log_sigmoid": lambda x: -_softplus(-x),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "hard_tanh": lambda x: _clip(x, -1, 1),
    "hard_shrink": lambda x: _where(_between(x, -0.5, 0.5), _c(0, x), x),
    "soft_shrink": _soft_shrink,
    "tanh": lambda x: _libm("tanh", x),
    "tanh_shrink": lambda x: x - _libm("tanh", x),
    "softplus": _softplus,
    "softsign": lambda x: x / (_c(1, x) + _where(x < _c(0, x), -x, x)),
    "exponential": _exp,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: _clip(_c(0.5, x) * (x + _c(1, x)), 0, 1),
    "squareplus": _squareplus,
}
