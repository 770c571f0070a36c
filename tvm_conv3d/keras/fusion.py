"""Batch norms and activations behind convolutions, as parts of their kernels in inference."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import keras

from tvm_conv3d.keras.backends import BACKEND
from tvm_conv3d.keras.backends.protocol import Norm
from tvm_conv3d.keras.layer import Conv3D
from tvm_conv3d.layer.objects import activations
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS, LINEAR, canonical


class Chain(NamedTuple):
    """A convolution and the layers behind it that its kernel can compute.

    Attributes:
        convolution: it.
        norm: a batch norm, or None.
        activation: a layer, or None.
        step: what the activation is called as a post-op.
    """

    convolution: Any
    norm: Any
    activation: Any
    step: str

    @property
    def absorbed(self) -> list[Any]:
        """The layers behind the convolution."""
        return [layer for layer in (self.norm, self.activation) if layer is not None]

    def __str__(self) -> str:
        return " + ".join(layer.path or layer.name for layer in (self.convolution, *self.absorbed))


class FusedConv3D(Conv3D):
    """A convolution that in inference computes the layers behind it, too; made of one by `acceleration.accelerate`."""

    _chain: Chain

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The result of the whole chain in inference; that of the convolution in training."""
        if training:
            return super().call(inputs, training)
        inputs = self._floating(inputs)
        kernel, bias = self._weights()
        if BACKEND.why_keras(inputs, kernel, bias) is not None:
            return self._by_layers(super().call(inputs))
        _, norm, activation, step = self._chain
        function = keras.activations.linear if activation is None else activation
        parts = None if norm is None else norm_of(norm)
        return self._convolved(step, function, False, inputs, kernel, bias, parts)

    def _by_layers(self, y: Any) -> Any:
        for layer in self._chain.absorbed:
            y = layer(y)
        return y


class Absorbed(keras.layers.Layer):
    """A layer that does its work in training only: in inference the convolution before it has done it."""

    def __init__(self, layer: Any) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """What the layer makes of its inputs in training; they themselves in inference."""
        if not training:
            return inputs
        return self.layer(inputs, training=training, **({} if mask is None else {"mask": mask}))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)


def norm_of(norm: Any) -> Norm:
    """The values of a batch norm as they are now."""
    given = (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta)
    mean, variance, gamma, beta = (None if value is None else BACKEND.to_tensor(value) for value in given)
    return Norm(mean, variance, gamma, beta, norm.epsilon)


def chains(model: Any) -> list[Chain]:
    """The chains in a functional model: each layer is called once there, and nobody else sees its input."""
    graph = Graph(model)
    found = [_chain(node.operation, graph.following, node) for node in graph.convolutions]
    return [chain for chain in found if chain is not None]


class Graph:
    """The calls of a functional model, and who sees their results.

    Args:
        model: it.
    """

    def __init__(self, model: Any) -> None:
        self._consumers: dict[int, list[Any]] = defaultdict(list)
        self._calls: dict[int, list[Any]] = defaultdict(list)
        for nodes in model._nodes_by_depth.values():
            for node in nodes:
                self._calls[id(node.operation)].append(node)
                for tensor in node.input_tensors:
                    self._consumers[id(tensor)].append(node)
        self._seen = {id(tensor) for tensor in model.outputs}
        self._operations = model.operations

    @property
    def convolutions(self) -> list[Any]:
        """The calls of convolutions that are called once, in the model's order."""
        kinds = (keras.layers.Conv3D, Conv3D)
        calls = [self._calls[id(operation)] for operation in self._operations if type(operation) in kinds]
        return [nodes[0] for nodes in calls if len(nodes) == 1 and _is_plain(nodes[0])]

    def following(self, node: Any) -> Any:
        """The one call that takes a call's result, where nobody else does; None else."""
        (tensor,) = node.outputs
        after = self._consumers[id(tensor)]
        if id(tensor) in self._seen or len(after) != 1 or len(self._calls[id(after[0].operation)]) != 1:
            return None
        return after[0] if _is_plain(after[0]) else None


def _is_plain(node: Any) -> bool:
    """Whether it is a call with a tensor, and nothing else that is told."""
    return len(node.arguments.args) == 1 and all(value is None for value in node.arguments.kwargs.values())


def _chain(convolution: Any, following: Any, node: Any) -> Chain | None:
    """What begins with a convolution; None where nothing behind it can be a part of it."""
    if convolution.activity_regularizer is not None or activations.split(convolution.activation) != _LINEAR:
        return None
    norm = activation = None
    node = following(node)
    if node is not None and _is_norm(node.operation, convolution):
        norm = node.operation
        node = following(node)
    step = None if node is None or observed(node.operation) else step_of(node.operation)
    if step is not None and node.operation.compute_dtype == convolution.compute_dtype:
        activation = node.operation
    if norm is None and activation is None:
        return None
    return Chain(convolution, norm, activation, LINEAR if activation is None else str(step))


_LINEAR = activations.split(None)


def observed(operation: Any) -> bool:
    """Whether a loss is made of an operation's result."""
    return getattr(operation, "activity_regularizer", None) is not None


def _is_norm(operation: Any, convolution: Any) -> bool:
    """Whether it is a batch norm of the convolution's filters, in a type in which folded weights lose nothing."""
    if type(operation) is not keras.layers.BatchNormalization or observed(operation) or not operation.built:
        return False
    last = convolution.data_format == CHANNELS_LAST
    same = operation.compute_dtype == convolution.compute_dtype
    return same and convolution.compute_dtype != "float16" and operation.axis in ((-1, 4) if last else (1, -4))


def step_of(layer: Any) -> str | None:
    """An activation layer as a post-op; None where no kernel computes it."""
    kind, layers = type(layer), keras.layers
    if kind is layers.Activation:
        name = activations.canonical_name(layer.activation)
        return name if name in FUSED_ACTIVATIONS else None
    if kind is layers.LeakyReLU:
        return _printed(f"leaky_relu:{float(layer.negative_slope)!r}")
    if kind is layers.ELU:
        return _printed(f"elu:{float(layer.alpha)!r}")
    if kind is layers.ReLU and not layer.threshold:
        if layer.max_value is None:
            return _printed(f"leaky_relu:{float(layer.negative_slope)!r}") if layer.negative_slope else "relu"
        return "relu6" if layer.max_value == 6 and not layer.negative_slope else None
    return None


def _printed(step: str) -> str | None:
    """A step in its shortest form; None where its parameter is not one that a kernel takes."""
    try:
        (found,) = canonical([step])
    except ValueError:
        return None
    return found
