"""A convolution's sums and their two gradients as primitives of JAX: the derivatives of each one are the other two.

Each is linear in both of its arrays, which is all that `jax.interpreters.ad.defbilinear` needs for derivatives of both
modes and any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.interpreters import ad

from tvm_conv3d.keras.backends import arrays, jax_calls
from tvm_conv3d.keras.backends.array_gradients import Kind, kind_of, why_keras_data, why_keras_weight
from tvm_conv3d.keras.backends.jax_primitives import primitive
from tvm_conv3d.keras.backends.protocol import Convolution
from tvm_conv3d.spec import DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT


class Call(NamedTuple):
    """What a call needs beside its arrays.

    Attributes:
        convolution: in Keras's terms, of equal calls the same.
        kernel: computes the activation, too, or leaves it to the convolution's function.
        input_shape, kernel_shape, output_shape: of the convolution.
    """

    convolution: Convolution
    kernel: jax_calls.Kernel
    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def without_activation(self) -> Call:
        """The same of the sums."""
        return self._replace(kernel=self.kernel.without_activation())

    def kind(self, dtype: Any) -> Kind:
        """Of the gradients of arrays of this type."""
        return kind_of(self.kernel.arguments, self.input_shape, self.kernel_shape, dtype.name)

    def shape(self, direction: str) -> tuple[int, ...]:
        """Of a result."""
        shapes = {FORWARD: self.output_shape, DATA_GRADIENT: self.input_shape, WEIGHT_GRADIENT: self.kernel_shape}
        return shapes[direction]


def sums(call: Call, x: Any, kernel: Any) -> Any:
    """The convolution, without bias and activation."""
    return _SUMS.bind(x, kernel, call=call.without_activation())


def data_gradient(call: Call, of_y: Any, kernel: Any) -> Any:
    """The gradient of the input of :func:`sums`; by the backend's own code, and counted, where there is a reason."""
    reason = why_keras_data(call.kind(of_y.dtype))
    if reason is None:
        return _DATA_GRADIENT.bind(of_y, kernel, call=call.without_activation())
    function = functools.partial(_by_keras, call, kernel=kernel)
    return _transposed(reason, function, jax.ShapeDtypeStruct(call.input_shape, of_y.dtype), of_y)


def weight_gradient(call: Call, x: Any, of_y: Any) -> Any:
    """The gradient of the kernel of :func:`sums`; by the backend's own code, and counted, where there is a reason."""
    reason = why_keras_weight(call.kind(of_y.dtype))
    if reason is None:
        return _WEIGHT_GRADIENT.bind(x, of_y, call=call.without_activation())
    function = functools.partial(_by_keras, call, x)
    return _transposed(reason, function, jax.ShapeDtypeStruct(call.kernel_shape, of_y.dtype), of_y)


def _by_keras(call: Call, x: Any, kernel: Any) -> Any:
    return arrays.by_keras(call.convolution, x, kernel)


def _transposed(reason: str, function: Callable[[Any], Any], of: Any, of_y: Any) -> Any:
    """The gradient of what a linear function takes."""
    arrays.TALLY.count_theirs(reason)
    (found,) = jax.linear_transpose(function, of)(of_y)
    return found


def _primitive(direction: str) -> Any:
    """Takes two arrays and a :class:`Call`; its derivatives are still to be told."""

    def compute(first: Any, second: Any, *, call: Call) -> Any:
        return jax_calls.call(call.kernel._replace(direction=direction), call.shape(direction), first, second)

    return primitive(direction, compute, lambda call: call.shape(direction))


_SUMS, _DATA_GRADIENT, _WEIGHT_GRADIENT = map(_primitive, (FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT))

# each rule: the gradient of the first array, or the second one, of that of the result and the other array
ad.defbilinear(
    _SUMS,
    lambda outer, x, kernel, *, call: data_gradient(call, outer, kernel),
    lambda outer, x, kernel, *, call: weight_gradient(call, x, outer),
)
ad.defbilinear(
    _DATA_GRADIENT,
    lambda outer, of_y, kernel, *, call: sums(call, outer, kernel),
    lambda outer, of_y, kernel, *, call: weight_gradient(call, outer, of_y),
)
ad.defbilinear(
    _WEIGHT_GRADIENT,
    lambda outer, x, of_y, *, call: data_gradient(call, of_y, outer),
    lambda outer, x, of_y, *, call: sums(call, x, outer),
)
