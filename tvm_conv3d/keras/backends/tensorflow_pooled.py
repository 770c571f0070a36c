"""Maxima of windows side by side of convolutions with a ReLU on TensorFlow, in one step, with gradients of any order.

What the convolution gives is the largest array of most networks, and only maxima are asked of it: it is gone once these
are found, and of a network's first convolution it is never whole. The ReLU's gradient is taken of the maxima, which are
fewer, and goes to their cells then.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tvm_conv3d.functional import stem_gradient, training
from tvm_conv3d.keras.backends import arrays
from tvm_conv3d.keras.backends.tensorflow_calls import prunable
from tvm_conv3d.keras.backends.tensorflow_convolution import (
    Call,
    Sizes,
    convolve,
    gradient_of_input,
    gradient_of_weights,
    relu_gradient,
)
from tvm_conv3d.keras.backends.tensorflow_pooling import pick, spread
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import Triple


def maxima(call: Call, window: Triple, x: Any, kernel: Any, biases: tuple[Any, ...]) -> Any:
    """The maximum of each window of `relu(convolution(x, kernel) + bias)`.

    Args:
        call: with a ReLU, of channels_last.
        window: depth, height and width in cells; a rest is left out.
        x, kernel, biases: of a type that :func:`tvm_conv3d.functional.training.takes` takes; one bias or none.
    """
    kind = tf.TensorSpec(call.output_shape(tuple(x.shape)), x.dtype)

    @tf.custom_gradient
    def function(x: Any, kernel: Any, *biases: Any) -> Any:
        def gradient(of_y: Any) -> tuple[Any, ...]:
            pooled = _Pooled(call, window, Sizes(x.shape, tf.shape(x), kernel.shape), kind, cells, size)
            of_maxima = relu_gradient(of_y, y)
            of_sums = pooled.spread(of_maxima)
            of_x = gradient_of_input(call, pooled.sizes, of_sums, kernel)
            if stem_gradient.takes(call.arguments, tuple(kernel.shape), x.dtype.name):
                return of_x, *_stem_gradient(pooled, x, of_maxima, bool(biases))
            return of_x, *gradient_of_weights(call, pooled.sizes, x, of_sums, bool(biases))

        y, cells, size = _computed(call, window, kind, x, kernel, biases)
        return y, gradient

    return function(x, kernel, *biases)


class _Pooled:
    """What gradients need beside their tensors.

    Args:
        call, window: of the maxima.
        sizes: of input and kernel.
        kind: shape, as far as it is known, and type of what the maxima are of.
        cells: of the maxima.
        size: all of the shape of `kind`, as a tensor.
    """

    def __init__(self, call: Call, window: Triple, sizes: Sizes, kind: tf.TensorSpec, cells: Any, size: Any) -> None:
        self.call, self.window, self.sizes = call, window, sizes
        self.cells = cells
        self._kind, self._size = kind, size

    def spread(self, of_maxima: Any) -> Any:
        """The gradient of what the maxima are of."""
        return spread(of_maxima, self.cells, self._size, self._kind, self.window)


def _stem_gradient(pooled: _Pooled, x: Any, of_maxima: Any, bias: bool) -> Any:
    """The gradients of a kernel, and maybe a bias: they are linear in both of the tensors."""
    call = pooled.call

    @tf.custom_gradient
    def function(x: Any, of_maxima: Any) -> Any:
        def gradient(outer: Any, *of_bias: Any) -> tuple[Any, Any]:
            of_x = gradient_of_input(call, pooled.sizes, pooled.spread(of_maxima), outer)
            sums = convolve(call.without_activation(), x, outer, of_bias)
            return of_x, pick(sums, pooled.cells, pooled.window)

        of_kernel = pooled.sizes.of_kernel
        now = functools.partial(_stem_gradient_now, tuple(of_kernel), pooled.window, bias)
        kinds = [tf.TensorSpec(shape, x.dtype) for shape in (of_kernel, of_kernel[-1:])]
        return prunable(now, (x, of_maxima, pooled.cells), kinds if bias else kinds[:1]), gradient

    return function(x, of_maxima)


def _stem_gradient_now(
    kernel_shape: tuple[int, ...], window: Triple, bias: bool, x: Any, of_maxima: Any, cells: Any
) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    source = interchange.wrap(x)
    given = source.numpy(), np.asarray(of_maxima), np.asarray(cells)
    found = stem_gradient.weight_gradient(*given, kernel_shape, window)
    arrays.TALLY.count_ours()
    return [source.restore(each) for each in found[: 1 + bias]]


def _computed(
    call: Call, window: Triple, kind: tf.TensorSpec, x: Any, kernel: Any, biases: tuple[Any, ...]
) -> list[Any]:
    """Maxima, their cells, and the shape that they are taken of: now, or whenever a function that is traced is called.

    Raises:
        ValueError: there is no room for one window of the convolution.
    """
    shape = training.pooled(kind.shape, window)
    kinds = tf.TensorSpec(shape, x.dtype), tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((5,), tf.int64)
    return prunable(functools.partial(_now, call, window), (x, kernel, *biases), kinds)


def _now(call: Call, window: Triple, x: Any, kernel: Any, *biases: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    source = interchange.wrap(x)
    (bias,) = map(np.asarray, biases) if biases else (None,)
    *found, shape = arrays.maxima(call.arguments, source.numpy(), np.asarray(kernel), bias, window, call.place)
    return [source.restore(each) for each in (*found, np.array(shape, np.int64))]
