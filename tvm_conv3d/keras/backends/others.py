"""Keras's backends that this package has no way into: all is left to them, and counted."""

from __future__ import annotations

from typing import Any

from tvm_conv3d.keras.backends.protocol import Backend, Convolution, Norm, ShapeFunction
from tvm_conv3d.support import process
from tvm_conv3d.support.tally import Tally

_TALLY = process.keep("keras: convolutions by other backends", Tally())


class Others(Backend):
    """A backend that is not served."""

    supports_jit = True
    tally = _TALLY

    def __init__(self, name: str) -> None:
        self._name = name

    def why_keras(self, x: Any, kernel: Any, bias: Any) -> str | None:
        """Always, for this backend."""
        return f"Keras's backend {self._name}: torch, tensorflow and jax are served"

    def convolve(
        self,
        convolution: Convolution,
        output_shape: ShapeFunction,
        x: Any,
        kernel: Any,
        bias: Any,
        norm: Norm | None = None,
    ) -> Any:
        """Nothing is computed here.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(str(self.why_keras(x, kernel, bias)))
