"""Keras's tensorflow backend: eager tensors as they lie, and in traced functions a step that calls back with such.

Tensors cross by NumPy's views and DLPack, without a copy; `tf.convert_to_tensor` would copy.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tvm_conv3d.functional import training
from tvm_conv3d.keras.backends import arrays, exporting, tensorflow_norms, tensorflow_pooled, tensorflow_pooling
from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.keras.backends.tensorflow_convolution import RELU, Call, convolve
from tvm_conv3d.spec import CHANNELS_LAST, Triple


class TensorFlow(Backend):
    """Tensors of TensorFlow."""

    supports_jit = False
    has_pools = True
    has_pooled_convolutions = True
    has_norms = True
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
        """With gradients of this package, of any order."""
        kernel, bias = arrays.folded(kernel, bias, norm)
        biases = () if bias is None else (bias,)
        call = Call(convolution, arrays.arguments_of(convolution), output_shape)
        if not convolution.training or convolution.post_ops == RELU:
            return convolve(call, x, kernel, biases)
        # what the gradient of the activation needs is at hand then
        return convolution.function(convolve(call.without_activation(), x, kernel, biases))

    def convolve_pooled(
        self, convolution: Convolution, output_shape: ShapeFunction, x: Any, kernel: Any, bias: Any, window: Triple
    ) -> Any:
        """Of ReLUs of channels that lie innermost, with gradients of any order."""
        relu = convolution.post_ops == RELU and convolution.data_format == CHANNELS_LAST
        if not relu or not training.takes(x.dtype.name, window) or self.why_keras(x, kernel, bias) is not None:
            return None
        call = Call(convolution, arrays.arguments_of(convolution), output_shape)
        return tensorflow_pooled.maxima(call, window, x, kernel, () if bias is None else (bias,))

    def max_pool(self, x: Any, window: Triple, data_format: str) -> Any:
        """Of channels that lie innermost."""
        if data_format != CHANNELS_LAST or self.why_keras(x, x, None) is not None:
            return None
        return tensorflow_pooling.maxima(x, window) if training.takes(x.dtype.name, window) else None

    def batch_norm(self, x: Any, norm: Norm, of_batch: bool, data_format: str) -> tuple[Any, Any, Any] | None:
        """Of channels that lie innermost."""
        if data_format != CHANNELS_LAST or self.why_keras(x, x, None) is not None:
            return None
        if of_batch:
            return tensorflow_norms.of_batch(x, norm)
        return tensorflow_norms.of_moments(x, norm), norm.mean, norm.variance


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
