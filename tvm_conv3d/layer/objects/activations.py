"""Keras's activations in NumPy, and which of them the kernels compute themselves.

Every function keeps its input's dtype; half types are computed in float32 and rounded once. NaN stays NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d.layer.keras_config import loaded_keras
from tvm_conv3d.layer.objects import special
from tvm_conv3d.layer.objects.registry import Family, is_keras
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS
from tvm_conv3d.support.dtypes import widen

Function = Callable[..., Any]

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


def _keeps_dtype(function: Function) -> Function:
    """Gives `function` a wide array and rounds its result to the input's dtype."""

    @functools.wraps(function)
    def rounded(x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        array = np.asarray(x)
        # Infinite inputs are legitimate, and their intermediate NaN or overflow is answered by the selection.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(function(widen(array), *args, **kwargs)).astype(array.dtype, copy=False)

    return rounded


def linear(x: Any) -> Any:
    """`x` itself."""
    return x


@_keeps_dtype
def relu(
    x: np.ndarray, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> np.ndarray:
    """`x` above `threshold`, at most `max_value`; below it `negative_slope * (x - threshold)`."""
    above = np.where(x <= threshold, 0, x)
    if max_value is not None:
        above = np.minimum(above, max_value)
    if negative_slope == 0.0:
        return above
    return above - negative_slope * np.maximum(threshold - x, 0)


@_keeps_dtype
def relu6(x: np.ndarray) -> np.ndarray:
    """`x` clipped to [0, 6]."""
    return np.clip(x, 0, 6)


@_keeps_dtype
def leaky_relu(x: np.ndarray, negative_slope: float = 0.2) -> np.ndarray:
    """`x` where positive, else `negative_slope * x`."""
    return np.where(x > 0, x, negative_slope * x)


@_keeps_dtype
def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """`x` where positive, else `alpha * (exp(x) - 1)`."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@_keeps_dtype
def celu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """`x` where positive, else `alpha * (exp(x / alpha) - 1)`."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


@_keeps_dtype
def selu(x: np.ndarray) -> np.ndarray:
    """`elu` scaled to keep mean 0 and variance 1 (Klambauer et al., 2017)."""
    return _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0)))


@_keeps_dtype
def gelu(x: np.ndarray, approximate: bool = False) -> np.ndarray:
    """`x` times the normal distribution's probability of less than `x` (Hendrycks and Gimpel, 2016)."""
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    # erfc, as 1 + erf would cancel for negative x.
    return 0.5 * x * special.erfc(x / -math.sqrt(2))


@_keeps_dtype
def sigmoid(x: np.ndarray) -> np.ndarray:
    """`1 / (1 + exp(-x))`."""
    return _sigmoid(x)


@_keeps_dtype
def silu(x: np.ndarray) -> np.ndarray:
    """`x * sigmoid(x)`."""
    return x * _sigmoid(x)


@_keeps_dtype
def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """`log(sigmoid(x))`."""
    return -np.logaddexp(-x, 0)


@_keeps_dtype
def softplus(x: np.ndarray) -> np.ndarray:
    """`log(1 + exp(x))`."""
    return np.logaddexp(x, 0)


@_keeps_dtype
def mish(x: np.ndarray) -> np.ndarray:
    """`x * tanh(softplus(x))`."""
    return x * np.tanh(np.logaddexp(x, 0))


@_keeps_dtype
def softsign(x: np.ndarray) -> np.ndarray:
    """`x / (|x| + 1)`."""
    return x / (np.abs(x) + 1)


@_keeps_dtype
def tanh(x: np.ndarray) -> np.ndarray:
    """Hyperbolic tangent."""
    return np.tanh(x)


@_keeps_dtype
def tanh_shrink(x: np.ndarray) -> np.ndarray:
    """`x - tanh(x)`."""
    return x - np.tanh(x)


@_keeps_dtype
def exponential(x: np.ndarray) -> np.ndarray:
    """`exp(x)`."""
    return np.exp(x)


@_keeps_dtype
def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    """`x / 6 + 0.5` clipped to [0, 1]."""
    return np.clip(x + 3, 0, 6) / 6


@_keeps_dtype
def hard_silu(x: np.ndarray) -> np.ndarray:
    """`x * hard_sigmoid(x)`."""
    return x * (np.clip(x + 3, 0, 6) / 6)


@_keeps_dtype
def hard_tanh(x: np.ndarray) -> np.ndarray:
    """`x` clipped to [-1, 1]."""
    return np.clip(x, -1, 1)


@_keeps_dtype
def hard_shrink(x: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """`x` where `|x| > threshold`, else 0."""
    return np.where(np.abs(x) <= threshold, 0, x)


@_keeps_dtype
def soft_shrink(x: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """`x` moved toward 0 by `threshold`, at most to 0."""
    return x - np.clip(x, -threshold, threshold)


@_keeps_dtype
def threshold(x: np.ndarray, threshold: float, default_value: float) -> np.ndarray:
    """`x` where above `threshold`, else `default_value`; a layer cannot call it, as Keras's cannot."""
    return np.where(x <= threshold, default_value, x)


@_keeps_dtype
def sparse_plus(x: np.ndarray) -> np.ndarray:
    """0 up to -1, `x` from 1, and the parabola `(x + 1) ** 2 / 4` between."""
    return np.where(x <= -1, 0, np.where(x >= 1, x, np.square(x + 1) / 4))


@_keeps_dtype
def sparse_sigmoid(x: np.ndarray) -> np.ndarray:
    """`(x + 1) / 2` clipped to [0, 1]."""
    return np.clip((x + 1) / 2, 0, 1)


@_keeps_dtype
def squareplus(x: np.ndarray, b: float = 4) -> np.ndarray:
    """`(x + sqrt(x ** 2 + b)) / 2`."""
    root = np.hypot(x, math.sqrt(b))
    # For negative x the sum cancels; its product with root - x is b.
    return np.where(x > 0, (x + root) / 2, b / (2 * (root - np.minimum(x, 0))))


@_keeps_dtype
def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x)` over its sum along `axis`."""
    if x.size == 0:
        return x
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return powers / np.sum(powers, axis=axis, keepdims=True)


@_keeps_dtype
def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`log(softmax(x))`."""
    if x.size == 0:
        return x
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


@_keeps_dtype
def sparsemax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The nearest point to `x` on the probability simplex (Martins and Astudillo, 2016, algorithm 1)."""
    if x.size == 0:
        return x
    rows = np.moveaxis(x, axis, -1).astype(np.float64)
    # A shift of the whole row changes nothing, and keeps the sums small.
    rows = rows - rows.max(axis=-1, keepdims=True)
    descending = -np.sort(-rows, axis=-1)
    sums = np.cumsum(descending, axis=-1)
    counts = np.arange(1, rows.shape[-1] + 1)
    support = np.count_nonzero(1 + counts * descending > sums, axis=-1, keepdims=True)
    # A row of NaN supports nothing and stays NaN whatever is picked.
    last = np.maximum(support, 1) - 1
    tau = (np.take_along_axis(sums, last, axis=-1) - 1) / (last + 1)
    return np.moveaxis(np.maximum(rows - tau, 0), -1, axis)


@_keeps_dtype
def glu(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The first half along `axis` times the sigmoid of the second.

    Raises:
        ValueError: an odd number of elements.
    """
    if x.shape[axis] % 2:
        raise ValueError(f"glu halves axis {axis}, whose size must be even. Received: shape={x.shape}")
    values, gates = np.split(x, 2, axis=axis)
    return values * _sigmoid(gates)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, decay) / (1 + decay)


_FUNCTIONS: tuple[Function, ...] = (
    celu,
    elu,
    exponential,
    gelu,
    glu,
    hard_shrink,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    linear,
    log_sigmoid,
    log_softmax,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_shrink,
    softmax,
    softplus,
    softsign,
    sparse_plus,
    sparse_sigmoid,
    sparsemax,
    squareplus,
    tanh,
    tanh_shrink,
    threshold,
)
_NAMES: dict[str, Function] = {function.__name__: function for function in _FUNCTIONS}
_ALIASES = {"swish": silu, "hard_swish": hard_silu}


class _Activations(Family):
    """Activations: functions known by their names alone."""

    def get(self, identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        return linear if identifier is None else super().get(identifier, custom_objects)

    def serialize(self, obj: Any) -> Any:
        name = canonical_name(obj)
        return super().serialize(obj) if name is None else name

    def own(self, obj: Any) -> Any:
        name = canonical_name(obj)
        return obj if name is None else _NAMES[name]


FAMILY = _Activations("activation function", "keras.activations", _NAMES | _ALIASES)
get = FAMILY.get
serialize = FAMILY.serialize
deserialize = FAMILY.deserialize


def canonical_name(activation: Any) -> str | None:
    """The name of one of this module's functions or of Keras's own; None for anything else."""
    name = getattr(activation, "__name__", None)
    if name not in _NAMES:
        return None
    keras = loaded_keras()
    known = (_NAMES[name], getattr(keras.activations, name, None) if keras is not None else None)
    return name if any(activation is function for function in known) else None


class Split(NamedTuple):
    """An activation as its part in the kernel and its part on the kernel's result.

    Attributes:
        fused: a name of `FUSED_ACTIVATIONS`.
        after: called on the result, or None.
        in_numpy: whether `after` takes an array of NumPy rather than the tensor the layer's caller passed.
    """

    fused: str
    after: Function | None
    in_numpy: bool


def split(activation: Function | None) -> Split:
    """Which part of `activation` the kernel computes and what is left to call."""
    if activation is None:
        return Split("linear", None, False)
    name = canonical_name(activation)
    if name in FUSED_ACTIVATIONS:
        return Split(str(name), None, False)
    if name is not None:
        return Split("linear", _NAMES[name], True)
    return Split("linear", activation, is_keras(activation))
