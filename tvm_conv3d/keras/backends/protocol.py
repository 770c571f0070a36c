"""What a layer asks of Keras's backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from tvm_conv3d.spec import Triple
from tvm_conv3d.spec.post_ops import LINEAR
from tvm_conv3d.support.tally import Tally

#: Gives a result's shape for an input's; None stands for what is not known.
ShapeFunction = Callable[[Any], Any]


class Convolution(NamedTuple):
    """A convolution's arguments, in Keras's terms.

    Attributes:
        strides, dilation: for depth, height and width.
        padding: "valid" or "same".
        groups, data_format: Keras's.
        activation: what the kernel applies to the sums, one of
            :data:`tvm_conv3d.spec.post_ops.FUSED_ACTIVATIONS`.
        function: Keras's function of the same.
        training: whether gradients are to be expected; they are right in any case.
        place: of weights in training; equal for calls of one layer only.
    """

    strides: Triple
    padding: str
    dilation: Triple
    groups: int
    data_format: str
    activation: str
    function: Any
    training: bool
    place: int

    @property
    def post_ops(self) -> tuple[str, ...]:
        """The activation as a chain."""
        return () if self.activation == LINEAR else (self.activation,)


class Norm(NamedTuple):
    """A batch norm of fixed statistics behind a convolution.

    Attributes:
        mean, variance: of each filter.
        gamma, beta: factor and summand of each filter, or None.
        epsilon: is added to the variance.
    """

    mean: Any
    variance: Any
    gamma: Any
    beta: Any
    epsilon: float


class Backend(ABC):
    """A backend of Keras's.

    Attributes:
        supports_jit: whether XLA, or what else Keras compiles models with, can hold our convolutions.
        has_pools: whether :meth:`max_pool` computes anything.
        has_pooled_convolutions: whether :meth:`convolve_pooled` does.
        has_norms: whether :meth:`batch_norm` does.
        tally: of convolutions.
    """

    supports_jit: bool
    has_pools: bool = False
    has_pooled_convolutions: bool = False
    has_norms: bool = False
    tally: Tally

    def to_tensor(self, value: Any) -> Any:
        """A variable of Keras's, or a tensor, as a tensor of the backend's own class: as Keras does."""
        return keras.ops.convert_to_tensor(value)

    @abstractmethod
    def why_keras(self, x: Any, kernel: Any, bias: Any) -> str | None:
        """Why the backend's own code is to compute a convolution; None where :meth:`convolve` does.

        Args:
            x: the input, a tensor of the backend's, of floating numbers.
            kernel, bias: as :meth:`convolve` takes them.
        """

    def count_keras(self, reason: str) -> None:
        """Counts what is left to the backend's own code."""
        self.tally.count_theirs(reason)

    @abstractmethod
    def convolve(
        self,
        convolution: Convolution,
        output_shape: ShapeFunction,
        x: Any,
        kernel: Any,
        bias: Any,
        norm: Norm | None = None,
    ) -> Any:
        """`activation(norm(convolution(x, kernel) + bias))`, differentiable.

        Args:
            convolution: its arguments.
            output_shape: of the layer.
            x: (batch, depth, height, width, channels), or with the channels first; of the backend.
            kernel: (kernel depth, height, width, channels / groups, filters).
            bias: (filters,), or None.
            norm: what becomes of the sums before the activation; None for nothing.

        Raises:
            ValueError: there is no room for one window.
        """

    def convolve_pooled(
        self, convolution: Convolution, output_shape: ShapeFunction, x: Any, kernel: Any, bias: Any, window: Triple
    ) -> Any:
        """:meth:`max_pool` of :meth:`convolve`, differentiable, in one step; None where two are needed.

        Args:
            convolution, output_shape, x, kernel, bias: as of :meth:`convolve`.
            window: depth, height and width.

        Raises:
            ValueError: there is no room for one window of the convolution.
        """
        return None

    def max_pool(self, x: Any, window: Triple, data_format: str) -> Any:
        """The maxima of windows side by side, differentiable; None where Keras's own code is to compute them.

        Args:
            x: of the backend, of this format.
            window: depth, height and width.
            data_format: Keras's.
        """
        return None

    def batch_norm(self, x: Any, norm: Norm, of_batch: bool, data_format: str) -> tuple[Any, Any, Any] | None:
        """The normalized `x`, differentiable, with the mean and variance; None where Keras's own code is to compute it.

        Args:
            x: of the backend, of this format.
            norm: its values.
            of_batch: whether mean and variance are those of `x` in place of the norm's.
            data_format: Keras's.
        """
        return None
