"""Keras's tensorflow backend: eager tensors as they lie, and in traced functions a step that calls back with such.

Tensors cross by NumPy's views and DLPack, without a copy; `tf.numpy_function` and `tf.convert_to_tensor` would copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import tensorflow as tf

from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.keras.backends import arrays, exporting
from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import CHANNELS_LAST


class TensorFlow(Backend):
    """Tensors of TensorFlow."""

    supports_jit = False
    tally = arrays.TALLY

    def to_tensor(self, value: Any) -> Any:
        """Keras's own function leaves variables as they are; what is sparse or ragged stays so."""
        kept = isinstance(value, (tf.Tensor, tf.SparseTensor, tf.RaggedTensor))
        return value if kept else tf.convert_to_tensor(value)

    def why_keras(self, x: Any, kernel: Any, bias: Any) -> str | None:
        """All but tensors of the CPU's, in eager code and in functions that are not compiled by XLA."""
        if not isinstance(x, tf.Tensor):
            return f"an input that is no dense tensor: {type(x).__name__}"
        reason = arrays.why_keras(x, kernel, bias)
        if reason is not None:
            return reason
        if not tf.is_symbolic_tensor(x):
            return None if "CPU" in x.device else f"tensors on {x.device}"
        if _has_gpus():
            return "functions that are traced where there are GPUs"
        if _in_xla():
            return "a function that is compiled by XLA (jit_compile=True)"
        return exporting.REASON if exporting.is_exporting() else None

    def convolve(
        self,
        convolution: Convolution,
        output_shape: ShapeFunction,
        x: Any,
        kernel: Any,
        bias: Any,
        norm: Norm | None = None,
    ) -> Any:
        """With the backend's own gradients."""
        kernel, bias = arrays.folded(kernel, bias, norm)
        biases = () if bias is None else (bias,)
        call = _Call(convolution, arrays.arguments_of(convolution), output_shape)
        if not convolution.training:
            return _convolve(call, x, kernel, biases)
        # what the gradient of the activation needs is at hand then
        return convolution.function(_convolve(call.without_activation(), x, kernel, biases))


class _Call(NamedTuple):
    """What a call needs beside its tensors; `arguments` is of the kernel, without the activation or with it."""

    convolution: Convolution
    arguments: ConvArguments
    output_shape: ShapeFunction

    def without_activation(self) -> _Call:
        """The same of the sums."""
        return self._replace(arguments=replace(self.arguments, post_ops=()))


@functools.cache
def _has_gpus() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _in_xla() -> bool:
    """Whether the function that is traced is to be compiled by XLA: it, or one around it."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        if context is not None and context.IsXLAContext():
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _convolve(call: _Call, x: Any, kernel: Any, biases: tuple[Any, ...]) -> Any:
    """`activation(convolution(x, kernel) + bias)` by a kernel, with the backend's gradients."""

    @tf.custom_gradient
    def function(x: Any, kernel: Any, *biases: Any) -> Any:
        def gradient(of_y: Any) -> tuple[Any, ...]:
            if call.arguments.post_ops:
                # with a gradient of its own, for those who derive again
                sums = _convolve(call.without_activation(), x, kernel, biases)
                (of_y,) = _gradients(call.convolution.function, (sums,), of_y)
            of_x, of_kernel = _gradients(functools.partial(arrays.by_keras, call.convolution), (x, kernel), of_y)
            axes = (0, 1, 2, 3) if call.arguments.data_format == CHANNELS_LAST else (0, 2, 3, 4)
            return of_x, of_kernel, *(tf.reduce_sum(of_y, axes) for _ in biases)

        return _computed(call, x, kernel, biases), gradient

    return function(x, kernel, *biases)


def _computed(call: _Call, x: Any, kernel: Any, biases: tuple[Any, ...]) -> Any:
    """The result: now, or, in a function that is traced, whenever that is called."""
    if not tf.is_symbolic_tensor(x):
        return _now(call, x, kernel, *biases)
    y = tf.py_function(functools.partial(_now, call), (x, kernel, *biases), x.dtype, name="tvm_conv3d")
    y.set_shape(call.output_shape(tuple(x.shape)))
    return y


def _now(call: _Call, x: Any, kernel: Any, *biases: Any) -> Any:
    """Of eager tensors."""
    place = call.convolution.place if call.convolution.training else None
    (bias,) = (each.numpy() for each in biases) if biases else (None,)
    return arrays.compute(call.arguments, interchange.wrap(x), kernel.numpy(), bias, place)


def _gradients(function: Callable[..., Any], inputs: tuple[Any, ...], of_y: Any) -> list[Any]:
    """Those of the inputs; what is computed on the way is left out of functions that are traced."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return list(tape.gradient(y, inputs, of_y))
