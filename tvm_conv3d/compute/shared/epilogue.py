"""The elementwise steps that a sum goes through before it is stored, as TE expressions.

Every name of `post_ops.FUSED_ACTIVATIONS` has its formula here, which takes the parameters of
:data:`tvm_conv3d.spec.post_ops.PARAMETERS`; they are Keras's. Formulas are written so that values up
to 1e15 do not overflow on the way to a finite result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from tvm import tirx

from tvm_conv3d.spec.post_ops import ADD, PostOp

Expr = Any  # a TVM expression; its classes are not public names


def apply_post_ops(post_ops: Iterable[str], x: Expr, residual: Expr = None) -> Expr:
    """The chain applied to `x`.

    Args:
        post_ops: the chain (:mod:`tvm_conv3d.spec.post_ops`).
        x: of type float32 or float64.
        residual: what `add` adds, of the same type; None where the chain has no `add`.
    """
    for name, values in map(PostOp.parse, post_ops):
        x = x + residual if name == ADD else _FORMULAS[name](x, *values)
    return x


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


def _times(factor: float, x: Expr) -> Expr:
    return x if factor == 1 else _c(factor, x) * x


def _elu(x: Expr, alpha: float) -> Expr:
    return _where(x > _c(0, x), x, _times(alpha, _libm("expm1", _negative_part(x))))


def _celu(x: Expr, alpha: float) -> Expr:
    return _where(x > _c(0, x), x, _times(alpha, _libm("expm1", _times(1 / alpha, _negative_part(x)))))


def _selu(x: Expr) -> Expr:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return _c(scale, x) * _where(x > _c(0, x), x, _c(alpha, x) * _libm("expm1", _negative_part(x)))


def _sigmoid(x: Expr) -> Expr:
    return _c(1, x) / (_c(1, x) + _exp(-x))


def _softplus(x: Expr) -> Expr:
    magnitude = _where(x < _c(0, x), -x, x)
    return _maximum(x, 0) + _libm("log1p", _exp(-magnitude))


def _softplus_of(x: Expr, beta: float) -> Expr:
    return _times(1 / beta, _softplus(_times(beta, x)))


def _gelu(x: Expr, approximate: str) -> Expr:
    if approximate == "tanh":
        # (1 + tanh(u)) / 2 would cancel for negative x: it is the sigmoid of 2 u
        twice = _c(-2 * math.sqrt(2 / math.pi), x) * (x + _c(0.044715, x) * x * x * x)
        return x / (_c(1, x) + _exp(twice))
    return _c(0.5, x) * x * _libm("erfc", _c(-math.sqrt(0.5), x) * x)


def _hard_sigmoid(x: Expr) -> Expr:
    return _clip(x * _c(1 / 6, x) + _c(0.5, x), 0, 1)


def _sparse_plus(x: Expr) -> Expr:
    middle = _c(0.25, x) * (x + _c(1, x)) * (x + _c(1, x))
    return _where(x <= _c(-1, x), _c(0, x), _where(x < _c(1, x), middle, x))


def _times_sigmoid(x: Expr) -> Expr:
    # x / (1 + inf) is -0 for every very negative x except -inf itself, where it is NaN, as in Keras
    return x / (_c(1, x) + _exp(-x))


def _mish(x: Expr) -> Expr:
    # tanh(ln(1 + e)) of e = exp(x) is e (e + 2) / (e (e + 2) + 2); divided by e^2 where that is large
    e = _exp(_where(x > _c(0, x), -x, x))
    part = _where(x > _c(0, x), _c(1, x) + _c(2, x) * e, e * (e + _c(2, x)))
    rest = _where(x > _c(0, x), _c(2, x) * e * e, _c(2, x))
    return x * (part / (part + rest))


def _between(x: Expr, low: float, high: float) -> Expr:
    return tirx.all(x >= _c(low, x), x <= _c(high, x))


def _soft_shrink(x: Expr, threshold: float) -> Expr:
    outside = _where(x > _c(0, x), x - _c(threshold, x), x + _c(threshold, x))
    return _where(_between(x, -threshold, threshold), _c(0, x), outside)


def _squareplus(x: Expr, b: float) -> Expr:
    root = tirx.sqrt(x * x + _c(b, x))
    # x + root cancels for negative x: the product of the two solutions is b / 4
    return _where(x < _c(0, x), _c(b / 2, x) / (root - x), _c(0.5, x) * (x + root))


_FORMULAS: dict[str, Callable[..., Expr]] = {
    "linear": lambda x: x,
    "relu": lambda x: _maximum(x, 0),
    "relu6": lambda x: _clip(x, 0, 6),
    "leaky_relu": lambda x, negative_slope: _where(x < _c(0, x), _c(negative_slope, x) * x, x),
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": _times_sigmoid,
    "mish": _mish,
    "sigmoid": _sigmoid,
    "log_sigmoid": lambda x: -_softplus(-x),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "hard_tanh": _clip,
    "hard_shrink": lambda x, threshold: _where(_between(x, -threshold, threshold), _c(0, x), x),
    "soft_shrink": _soft_shrink,
    "tanh": lambda x: _libm("tanh", x),
    "tanh_shrink": lambda x: x - _libm("tanh", x),
    "softplus": _softplus_of,
    "softsign": lambda x: x / (_c(1, x) + _where(x < _c(0, x), -x, x)),
    "exponential": _exp,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: _clip(_c(0.5, x) * (x + _c(1, x)), 0, 1),
    "squareplus": _squareplus,
}
