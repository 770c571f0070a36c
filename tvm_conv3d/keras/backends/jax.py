"""Keras's jax backend: a call of XLA's that reads and writes its buffers in place, under `jax.jit` and without it."""

from __future__ import annotations

import functools
from typing import Any

import jax

from tvm_conv3d.keras.backends import arrays, exporting, jax_pooling
from tvm_conv3d.keras.backends.jax_bilinear import Call, sums
from tvm_conv3d.keras.backends.jax_calls import Kernel, call
from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.spec import CHANNELS_LAST, Triple


class Jax(Backend):
    """Arrays of JAX."""

    supports_jit = True
    has_pools = True
    tally = arrays.TALLY

    def why_keras(self, x: Any, kernel: Any, bias: Any) -> str | None:
        """All but arrays of the CPU's."""
        if not hasattr(jax, "ffi"):
            return f"JAX {jax.__version__}, which has no jax.ffi: 0.5 has"
        if not isinstance(x, jax.Array):
            return f"an input that is no dense array: {type(x).__name__}"
        reason = arrays.why_keras(x, kernel, bias)
        if reason is not None:
            return reason
        if not isinstance(x, jax.core.Tracer):
            platforms = {device.platform for device in x.devices()}
            return None if platforms == {"cpu"} else f"arrays on {', '.join(sorted(platforms))}"
        if jax.default_backend() != "cpu":
            return f"functions that are traced for {jax.default_backend()}"
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
        """With derivatives of this package, of both modes and any order."""
        kernel, bias = arrays.folded(kernel, bias, norm)
        place = convolution.place if convolution.training else None
        made = Kernel(arrays.arguments_of(convolution), place)
        shapes = (tuple(x.shape), tuple(kernel.shape), tuple(output_shape(x.shape)))
        return _convolve(Call(convolution._replace(place=0), made, *shapes), x, kernel, bias)

    def max_pool(self, x: Any, window: Triple, data_format: str) -> Any:
        """By a call of XLA's, of channels that lie innermost."""
        if data_format != CHANNELS_LAST or self.why_keras(x, x, None) is not None:
            return None
        windows = jax_pooling.Windows(window, tuple(x.shape))
        return jax_pooling.maxima(windows, x)[0] if jax_pooling.takes(x.dtype.name, windows) else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(what: Call, x: Any, kernel: Any, bias: Any) -> Any:
    """`activation(convolution(x, kernel) + bias)`; the activation is that of the call's kernel."""
    return call(what.kernel, what.output_shape, x, kernel, *(() if bias is None else (bias,)))


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derived(what: Call, given: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The result and its derivative along `tangents`: the convolution is linear in input and kernel each."""
    x, kernel, bias = given
    of_x, of_kernel, of_bias = (None if type(t) is jax.custom_derivatives.SymbolicZero else t for t in tangents)
    y = _convolve(what.without_activation(), x, kernel, bias)
    parts = [] if of_x is None else [sums(what, of_x, kernel)]
    parts += [] if of_kernel is None else [sums(what, x, of_kernel)]
    if bias is not None and of_bias is not None:
        last = what.convolution.data_format == CHANNELS_LAST
        parts.append(jax.numpy.broadcast_to(of_bias if last else of_bias[:, None, None, None], what.output_shape))
    derivative = functools.reduce(jax.numpy.add, parts) if parts else jax.numpy.zeros(what.output_shape, x.dtype)
    if not what.kernel.arguments.post_ops:
        return y, derivative
    return jax.jvp(what.convolution.function, (y,), (derivative,))
