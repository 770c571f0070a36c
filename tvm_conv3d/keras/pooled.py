"""Convolutions with a ReLU, and max pools behind them that nobody else stands beside: one step."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from tvm_conv3d.functional.arguments import three
from tvm_conv3d.keras.backends import BACKEND
from tvm_conv3d.keras.fusion import Graph, observed
from tvm_conv3d.layer.objects import activations
from tvm_conv3d.spec import CHANNELS_LAST


class Pair(NamedTuple):
    """A convolution and the max pool that alone sees its result, layers of a model."""

    convolution: Any
    pool: Any

    def __str__(self) -> str:
        return " + ".join(layer.path or layer.name for layer in self)


class Passed(keras.layers.Layer):
    """Stands where a layer did whose work the next one does, too."""

    def __init__(self, layer: Any) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Any) -> Any:
        """What it is given."""
        return inputs


class PooledConvolution(keras.layers.Layer):
    """Both layers of a pair.

    Args:
        convolution: this package's.
        pool: any that computes what the pair's does.
    """

    def __init__(self, convolution: Any, pool: Any) -> None:
        super().__init__(name=pool.name, dtype=pool.dtype_policy)
        self.convolution = convolution
        self.pool = pool
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The maxima of windows of the convolution's result."""
        y = self.convolution.pooled(inputs, three(map(int, self.pool.pool_size)), training)
        return self.pool(self.convolution(inputs, training=training)) if y is None else y

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The pool's."""
        return self.pool.compute_output_shape(self.convolution.compute_output_shape(input_shape))


def pairs(model: Any) -> list[Pair]:
    """The pairs in a functional model that the backend has one step for."""
    if not BACKEND.has_pooled_convolutions:
        return []
    graph, found = Graph(model), []
    for node in graph.convolutions:
        after = graph.following(node)
        if after is not None and _fit(node.operation, after.operation):
            found.append(Pair(node.operation, after.operation))
    return found


def _fit(convolution: Any, pool: Any) -> bool:
    """Whether windows lie side by side, and nothing is asked of the convolution but its ReLU."""
    if type(pool) is not keras.layers.MaxPooling3D or observed(pool) or observed(convolution):
        return False
    side_by_side = pool.padding == "valid" and tuple(pool.strides) == tuple(pool.pool_size)
    last = pool.data_format == convolution.data_format == CHANNELS_LAST
    fused, after, _ = activations.split(convolution.activation)
    same = pool.dtype_policy.name == convolution.dtype_policy.name
    return side_by_side and last and same and fused == "relu" and after is None
