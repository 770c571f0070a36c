"""What XLA calls on JAX: a convolution, or a gradient of one, that reads and writes XLA's buffers in place."""

from __future__ import annotations

import ast
import functools
from dataclasses import astuple, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.keras.backends import array_gradients, arrays, xla
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.spec import DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT
from tvm_conv3d.support import process

#: The call's name in XLA.
_TARGET = "tvm_conv3d_convolution"


class Kernel(NamedTuple):
    """What a call computes.

    Attributes:
        arguments: of the convolution.
        place: of weights in training, as of :func:`tvm_conv3d.keras.backends.arrays.compute`.
        direction: which of the convolution and its gradients it is.
    """

    arguments: ConvArguments
    place: int | None
    direction: str = FORWARD

    def without_activation(self) -> Kernel:
        """The same of the sums."""
        return self._replace(arguments=replace(self.arguments, post_ops=()))

    @property
    def text(self) -> str:
        """All of it, as XLA keeps it, in files, too."""
        return repr((*astuple(self.arguments), self.place, self.direction))

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, text: str) -> Kernel:
        """The inverse of :attr:`text`."""
        *arguments, place, direction = ast.literal_eval(text)
        return cls(ConvArguments(*arguments), place, direction)


def call(kernel: Kernel, shape: tuple[int, ...], *given: Any) -> Any:
    """The result of this shape, now or whenever the function that is traced is called; one by one under `jax.vmap`.

    Args:
        kernel: what is computed.
        shape: of the result, whose type is that of what is given.
        given: input, kernel and maybe bias of a convolution; gradient of the output and kernel, or input and gradient
            of the output, of its gradients.
    """
    result = jax.ShapeDtypeStruct(shape, given[0].dtype)
    return jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")(*given, call=kernel.text)


def _compute(text: str, given: list[np.ndarray], results: list[np.ndarray]) -> None:
    """A call of XLA's, which may come from any thread."""
    (out,) = results
    kernel = Kernel.of(text)
    result = _COMPUTED[kernel.direction](kernel, given, out)
    if result is not out:
        # what has no elements, was computed as it lies with the channels inside, or is a kernel's gradient
        np.copyto(out, result)


def _convolution(kernel: Kernel, given: list[np.ndarray], out: np.ndarray) -> Any:
    x, weights, *biases = given
    bias = biases[0] if biases else None
    return arrays.compute(kernel.arguments, _source(x, out), weights, bias, kernel.place)


def _data_gradient(kernel: Kernel, given: list[np.ndarray], out: np.ndarray) -> Any:
    of_y, weights = given
    kind = array_gradients.kind_of(kernel.arguments, out.shape, weights.shape, out.dtype.name)
    return array_gradients.data_gradient(kind, _source(of_y, out), weights, kernel.place)


def _weight_gradient(kernel: Kernel, given: list[np.ndarray], out: np.ndarray) -> Any:
    x, of_y = given
    kind = array_gradients.kind_of(kernel.arguments, x.shape, out.shape, out.dtype.name)
    (found,) = array_gradients.weight_gradient(kind, _source(x), _source(of_y))
    return found


def _source(array: np.ndarray, out: np.ndarray | None = None) -> Source:
    return Source(array.shape, lambda: array, lambda result: result, out=out)


#: By direction.
_COMPUTED = {FORWARD: _convolution, DATA_GRADIENT: _data_gradient, WEIGHT_GRADIENT: _weight_gradient}

_HANDLER = process.keep("keras: XLA's entry", xla.register(_TARGET, _compute) if hasattr(jax, "ffi") else None)
