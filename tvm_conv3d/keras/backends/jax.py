"""Keras's jax backend: a call of XLA's that reads and writes its buffers in place, under `jax.jit` and without it."""

from __future__ import annotations

import ast
import functools
from dataclasses import astuple, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.keras.backends import arrays, exporting, xla
from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.support import process

#: The call's name in XLA.
_TARGET = "tvm_conv3d_convolution"


class Jax(Backend):
    """Arrays of JAX."""

    supports_jit = True
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
        """With rules for derivatives of both modes, which are the backend's own."""
        kernel, bias = arrays.folded(kernel, bias, norm)
        place = convolution.place if convolution.training else None
        kernel_of = _Kernel(arrays.arguments_of(convolution), place)
        call = _Call(convolution._replace(place=0), kernel_of, tuple(output_shape(x.shape)))
        return _convolve(call, x, kernel, bias)


class _Kernel(NamedTuple):
    """What a kernel computes, and whose weights are in training there."""

    arguments: ConvArguments
    place: int | None

    @property
    def text(self) -> str:
        """All of it, as XLA keeps it, in files, too."""
        return repr((*astuple(self.arguments), self.place))

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, text: str) -> _Kernel:
        """The inverse of :attr:`text`."""
        *arguments, place = ast.literal_eval(text)
        return cls(ConvArguments(*arguments), place)


class _Call(NamedTuple):
    """What a call needs beside its arrays: `kernel` computes the activation, or leaves it to the convolution's."""

    convolution: Convolution
    kernel: _Kernel
    shape: tuple[int, ...]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(call: _Call, x: Any, kernel: Any, bias: Any) -> Any:
    """`activation(convolution(x, kernel) + bias)`; the activation is that of the call's kernel."""
    given = (x, kernel) if bias is None else (x, kernel, bias)
    result = jax.ShapeDtypeStruct(call.shape, x.dtype)
    return jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")(*given, call=call.kernel.text)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derived(call: _Call, given: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The result and its derivative along `tangents`: the convolution is linear in input and kernel each."""
    x, kernel, bias = given
    of_x, of_kernel, of_bias = (None if type(t) is jax.custom_derivatives.SymbolicZero else t for t in tangents)
    plain = call.kernel._replace(arguments=replace(call.kernel.arguments, post_ops=()))
    sums = _convolve(call._replace(kernel=plain), x, kernel, bias)
    parts = [] if of_x is None else [arrays.by_keras(call.convolution, of_x, kernel)]
    parts += [] if of_kernel is None else [arrays.by_keras(call.convolution, x, of_kernel)]
    if bias is not None and of_bias is not None:
        last = call.convolution.data_format == CHANNELS_LAST
        parts.append(jax.numpy.broadcast_to(of_bias if last else of_bias[:, None, None, None], call.shape))
    derivative = functools.reduce(jax.numpy.add, parts) if parts else jax.numpy.zeros(call.shape, x.dtype)
    if not call.kernel.arguments.post_ops:
        return sums, derivative
    return jax.jvp(call.convolution.function, (sums,), (derivative,))


def _compute(text: str, given: list[np.ndarray], out: np.ndarray) -> None:
    """A call of XLA's, which may come from any thread."""
    x, kernel, *biases = given
    arguments, place = _Kernel.of(text)
    source = Source(x.shape, lambda: x, lambda result: result, out=out)
    result = arrays.compute(arguments, source, kernel, biases[0] if biases else None, place)
    if result is not out:
        # what has no elements, or was computed as it lies with the channels inside
        np.copyto(out, result)


_HANDLER = process.keep("keras: XLA's entry", xla.register(_TARGET, _compute) if hasattr(jax, "ffi") else None)
