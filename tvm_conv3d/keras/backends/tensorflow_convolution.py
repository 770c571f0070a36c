"""Convolutions and their gradients, of any order, on TensorFlow: eager tensors as they lie, and in traced functions a
step that calls back with such.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.keras.backends import arrays
from tvm_conv3d.keras.backends.array_gradients import (
    axes_of_positions,
    data_gradient,
    kind_of,
    weight_gradient,
    why_keras_data,
    why_keras_weight,
)
from tvm_conv3d.keras.backends.protocol import Convolution, ShapeFunction
from tvm_conv3d.keras.backends.tensorflow_calls import prunable
from tvm_conv3d.runtime import interchange

#: The chain whose gradient needs no more than its result.
RELU = ("relu",)


class Call(NamedTuple):
    """What a call needs beside its tensors; `arguments` is of the kernel, without the activation or with it."""

    convolution: Convolution
    arguments: ConvArguments
    output_shape: ShapeFunction

    @property
    def place(self) -> int | None:
        """Of weights in training."""
        return self.convolution.place if self.convolution.training else None

    def without_activation(self) -> Call:
        """The same of the sums."""
        return self._replace(arguments=replace(self.arguments, post_ops=()))


def convolve(call: Call, x: Any, kernel: Any, biases: tuple[Any, ...]) -> Any:
    """`activation(convolution(x, kernel) + bias)` by a kernel."""

    @tf.custom_gradient
    def function(x: Any, kernel: Any, *biases: Any) -> Any:
        def gradient(of_y: Any) -> tuple[Any, ...]:
            if call.arguments.post_ops == RELU:
                of_y = relu_gradient(of_y, y)
            elif call.arguments.post_ops:
                # with a gradient of its own, for those who derive again
                sums = convolve(call.without_activation(), x, kernel, biases)
                (of_y,) = _gradients(call.convolution.function, (sums,), of_y)
            sizes = Sizes(x.shape, tf.shape(x), kernel.shape)
            of_x = gradient_of_input(call, sizes, of_y, kernel)
            return of_x, *gradient_of_weights(call, sizes, x, of_y, bool(biases))

        y = _computed(call, x, kernel, biases)
        return y, gradient

    return function(x, kernel, *biases)


def relu_gradient(of_y: Any, y: Any) -> Any:
    """The gradient of what a ReLU made `y` of: linear in that of `y`; where it is taken of, `y` has no part in it."""
    # else traced functions would derive the step that has made `y`
    return tf.raw_ops.ReluGrad(gradients=of_y, features=tf.stop_gradient(y))


class Sizes(NamedTuple):
    """Of input and kernel: what is known of the input's as a function is traced, and all of it as a tensor."""

    known: tf.TensorShape
    of_input: Any
    of_kernel: tf.TensorShape


def gradient_of_input(call: Call, sizes: Sizes, of_y: Any, kernel: Any) -> Any:
    """The gradient of a convolution's input: it is linear in both of its tensors."""

    @tf.custom_gradient
    def function(of_y: Any, kernel: Any) -> Any:
        def gradient(outer: Any) -> tuple[Any, Any]:
            sums = convolve(call.without_activation(), outer, kernel, ())
            return sums, *gradient_of_weights(call, sizes, outer, of_y)

        given = (of_y, kernel, sizes.of_input)
        kinds = [tf.TensorSpec(sizes.known, of_y.dtype)]
        return prunable(functools.partial(_data_gradient_now, call), given, kinds)[0], gradient

    return function(of_y, kernel)


def gradient_of_weights(call: Call, sizes: Sizes, x: Any, of_y: Any, bias: bool = False) -> Any:
    """The gradients of a convolution's kernel, and maybe its bias: they are linear in both of its tensors."""

    @tf.custom_gradient
    def function(x: Any, of_y: Any) -> Any:
        def gradient(outer: Any, *of_bias: Any) -> tuple[Any, Any]:
            return gradient_of_input(call, sizes, of_y, outer), convolve(call.without_activation(), x, outer, of_bias)

        now = functools.partial(_weight_gradient_now, call, tuple(sizes.of_kernel), bias)
        kinds = [tf.TensorSpec(shape, x.dtype) for shape in (sizes.of_kernel, sizes.of_kernel[-1:])]
        return prunable(now, (x, of_y), kinds if bias else kinds[:1]), gradient

    return function(x, of_y)


def _data_gradient_now(call: Call, of_y: Any, kernel: Any, input_shape: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    kind = kind_of(call.arguments, map(int, input_shape), kernel.shape, of_y.dtype.name)
    reason = why_keras_data(kind)
    if reason is None:
        return [data_gradient(kind, interchange.wrap(of_y), np.asarray(kernel), call.place)]
    return [_by_keras(call, reason, (tf.zeros(kind.input_shape, of_y.dtype), kernel), of_y, 0)]


def _weight_gradient_now(call: Call, kernel_shape: tuple[int, ...], bias: bool, x: Any, of_y: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    kind = kind_of(call.arguments, x.shape, kernel_shape, x.dtype.name, bias)
    reason = why_keras_weight(kind)
    if reason is None:
        source = interchange.wrap(x)
        return [source.restore(each) for each in weight_gradient(kind, source, interchange.wrap(of_y))]
    found = [_by_keras(call, reason, (x, tf.zeros(kernel_shape, x.dtype)), of_y, 1)]
    return [*found, tf.reduce_sum(of_y, axes_of_positions(call.arguments.data_format))] if bias else found


def _by_keras(call: Call, reason: str, inputs: tuple[Any, Any], of_y: Any, number: int) -> Any:
    """The gradient of one of a convolution's inputs by the backend's own code, counted."""
    arrays.TALLY.count_theirs(reason)
    inputs = tf.convert_to_tensor(inputs[0]), tf.convert_to_tensor(inputs[1])
    found = _gradients(functools.partial(arrays.by_keras, call.convolution), inputs, tf.convert_to_tensor(of_y))[number]
    return found.numpy() if isinstance(of_y, np.ndarray) else found


def _computed(call: Call, x: Any, kernel: Any, biases: tuple[Any, ...]) -> Any:
    """The result: now, or, in a function that is traced, whenever that is called."""
    kind = tf.TensorSpec(call.output_shape(tuple(x.shape)), x.dtype)
    return prunable(functools.partial(_now, call), (x, kernel, *biases), [kind])[0]


def _now(call: Call, x: Any, kernel: Any, *biases: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    (bias,) = map(np.asarray, biases) if biases else (None,)
    return [arrays.compute(call.arguments, interchange.wrap(x), np.asarray(kernel), bias, call.place)]


def _gradients(function: Callable[..., Any], inputs: tuple[Any, ...], of_y: Any) -> list[Any]:
    """Those of the inputs; what is computed on the way is left out of functions that are traced."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return list(tape.gradient(y, inputs, of_y))
