"""`Conv3D`: `keras.layers.Conv3D` with its computation, and nothing else, taken over."""

from __future__ import annotations

from typing import Any

import keras

from tvm_conv3d.functional.arguments import three
from tvm_conv3d.keras.backends import BACKEND
from tvm_conv3d.keras.backends.protocol import Convolution, Norm
from tvm_conv3d.layer.objects import activations
from tvm_conv3d.spec import Triple
from tvm_conv3d.spec.post_ops import LINEAR

#: No activation: its name as a post-op, and its function.
_PLAIN = (LINEAR, keras.activations.linear)


@keras.saving.register_keras_serializable("tvm_conv3d")
class Conv3D(keras.layers.Conv3D):
    """`keras.layers.Conv3D`: arguments, weights, config, LoRA, saved files and errors are Keras's.

    Tensors of float32, float64, float16 and bfloat16 in the CPU's memory are computed by this package, within 1e-5 of
    the exact result in float32 (2-norm), on Keras's backends torch, tensorflow and jax; eagerly and in compiled
    functions. Bias and elementwise activations are part of the kernel where no gradient is asked for; gradients of any
    order are this package's, too. All else is computed by the backend's own code, and counted with the reason
    (:func:`tvm_conv3d.keras.counters`). Integers and booleans are cast to the compute dtype, as on JAX.

    A subclass that overrides `convolution_op` is asked for it, as Keras's own layer would ask it.

    Example:

    >>> layer = Conv3D(32, 3, activation="relu")
    >>> y = layer(keras.random.normal((1, 8, 56, 56, 16)))
    """

    @property
    def supports_jit(self) -> bool:
        """Whether Keras may choose XLA for a model by itself; False where XLA can't hold our convolutions."""
        return BACKEND.supports_jit and bool(vars(self).get("_supports_jit", True))

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self._supports_jit = value

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`activation(convolution(inputs, kernel) + bias)`.

        Args:
            inputs: of Keras's backend, of the layer's data format.
            training: whether gradients are to be expected; Keras passes it. They are right in any case.

        Raises:
            ValueError: there is no room for one window; and as Keras's backend.
        """
        inputs = self._floating(inputs)
        kernel, bias = self._weights()
        own = type(self).convolution_op is Conv3D.convolution_op
        if not own or BACKEND.why_keras(inputs, kernel, bias) is not None:
            return super().call(inputs)
        fused, after, _ = activations.split(self.activation)
        if after is None:
            return self._convolved(fused, self.activation, bool(training), inputs, kernel, bias)
        return self.activation(self._convolved(*_PLAIN, bool(training), inputs, kernel, bias))

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution alone, as `keras.layers.Conv3D.convolution_op`.

        Raises:
            ValueError: there is no room for one window; and as Keras's backend.
        """
        inputs, kernel = self._floating(inputs), BACKEND.to_tensor(kernel)
        reason = BACKEND.why_keras(inputs, kernel, None)
        if reason is not None:
            BACKEND.count_keras(reason)
            return super().convolution_op(inputs, kernel)
        return self._convolved(*_PLAIN, True, inputs, kernel, None)

    def pooled(self, inputs: Any, window: Triple, training: bool | None = None) -> Any:
        """The maxima of windows side by side of the layer's result; None where two steps are needed.

        Args:
            inputs, training: as :meth:`call` takes them.
            window: depth, height and width in cells.

        Raises:
            ValueError: there is no room for one window of the convolution.
        """
        inputs = self._floating(inputs)
        fused, after, _ = activations.split(self.activation)
        if after is not None or type(self).convolution_op is not Conv3D.convolution_op:
            return None
        convolution = self._convolution(fused, self.activation, bool(training))
        return BACKEND.convolve_pooled(convolution, self.compute_output_shape, inputs, *self._weights(), window)

    def _weights(self) -> tuple[Any, Any]:
        """Kernel and bias, or None, as the backend's own tensors, in the compute dtype."""
        return BACKEND.to_tensor(self.kernel), BACKEND.to_tensor(self.bias) if self.use_bias else None

    def _floating(self, inputs: Any) -> Any:
        """The inputs as the backend's own tensor of floating numbers; complex ones are for the backend to refuse."""
        inputs = BACKEND.to_tensor(inputs)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if keras.backend.is_float_dtype(dtype) or dtype.startswith("complex"):
            return inputs
        return keras.ops.cast(inputs, self.compute_dtype)

    def _convolved(
        self,
        activation: str,
        function: Any,
        training: bool,
        inputs: Any,
        kernel: Any,
        bias: Any,
        norm: Norm | None = None,
    ) -> Any:
        """The convolution with an activation, by its name as a post-op and as a function, and maybe a batch norm."""
        convolution = self._convolution(activation, function, training)
        return BACKEND.convolve(convolution, self.compute_output_shape, inputs, kernel, bias, norm)

    def _convolution(self, activation: str, function: Any, training: bool) -> Convolution:
        """The arguments, as the backend takes them."""
        return Convolution(
            three(map(int, self.strides)),
            self.padding,
            three(map(int, self.dilation_rate)),
            self.groups,
            self.data_format,
            activation,
            function,
            training,
            id(self),
        )
