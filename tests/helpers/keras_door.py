"""Layers of Keras's that this package computes, for the checks of each of Keras's backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_cases
from layer_samples import sample
from tvm_conv3d.keras import Conv3D, counters
from tvm_conv3d.layer.conv3d import Conv3D as Twin

#: Keras's backend.
BACKEND = keras.config.backend()


def numpy(value: Any) -> np.ndarray:
    """A tensor of the backend's."""
    return np.asarray(keras.ops.convert_to_numpy(value))


def built(cls: Any = Conv3D, shape: tuple[int, ...] | None = None, **arguments: Any) -> Any:
    """A layer with weights at random."""
    arguments = {"filters": 6, "kernel_size": 3, **arguments}
    layer = cls(**arguments)
    layer.build(keras_cases.input_shape(arguments) if shape is None else shape)
    layer.set_weights([sample(weight.shape, seed=1 + number) for number, weight in enumerate(layer.weights)])
    return layer


def expected(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's output in float64, from the definition of a convolution."""
    return keras_cases.expected(Twin.from_keras(layer), x)


def all_ours(most: int | None = None) -> bool:
    """Whether all was computed by this package, and something was: `most` convolutions at most."""
    counted = counters()
    assert counted.keras == {}, counted
    return 0 < counted.ours <= (counted.ours if most is None else most)


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of a tensor as the backend compiles it."""
    if BACKEND == "torch":
        import torch

        return torch.compile(function, fullgraph=True, backend="aot_eager")
    if BACKEND == "tensorflow":
        import tensorflow

        return tensorflow.function(function)
    import jax

    return jax.jit(function)


def gradients(layer: Any, x: np.ndarray, of_y: np.ndarray, *, traced: bool = False, order: int = 1) -> list[np.ndarray]:
    """Of the sum of `layer(x) * of_y`, by the backend: of the input, the kernel and the bias.

    Args:
        layer: built.
        x: its input.
        of_y: a factor for each element of its result.
        traced: in a function that the backend compiles.
        order: 2 for the gradients of the sum of the squares of the gradients.
    """
    given = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(of_y)
    of_backend = {"torch": _by_torch, "tensorflow": _by_tensorflow, "jax": _by_jax}[BACKEND]
    return list(map(numpy, of_backend(layer, given, traced, order)))


def _by_torch(layer: Any, given: tuple[Any, Any], traced: bool, order: int) -> Any:
    import torch

    x, of_y = given
    x.requires_grad_()
    inputs = [x, *(weight.value for weight in layer.trainable_weights)]
    loss = ((compiled(layer) if traced else layer)(x) * of_y).sum()
    for _ in range(order - 1):
        loss = sum(each.square().sum() for each in torch.autograd.grad(loss, inputs, create_graph=True))
    return torch.autograd.grad(loss, inputs)


def _by_tensorflow(layer: Any, given: tuple[Any, Any], traced: bool, order: int) -> Any:
    import tensorflow

    def of_all(x: Any, of_y: Any, order: int) -> Any:
        inputs = [x, *(weight.value for weight in layer.trainable_weights)]
        with tensorflow.GradientTape() as tape:
            tape.watch(x)
            if order == 1:
                loss = tensorflow.reduce_sum(layer(x) * of_y)
            else:
                loss = sum(tensorflow.reduce_sum(each * each) for each in of_all(x, of_y, order - 1))
        return tape.gradient(loss, inputs)

    return (tensorflow.function(of_all) if traced else of_all)(*given, order)


def _by_jax(layer: Any, given: tuple[Any, Any], traced: bool, order: int) -> Any:
    import jax

    x, of_y = given

    def loss(x: Any, trainable: Any, others: Any) -> Any:
        return (layer.stateless_call(trainable, others, x)[0] * of_y).sum()

    def squares(*given: Any) -> Any:
        return sum((each * each).sum() for each in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(*given)))

    variables = ([weight.value for weight in group] for group in (layer.trainable_weights, layer.non_trainable_weights))
    # with the value, as nothing but that needs the result of a convolution
    of_all = jax.value_and_grad(loss if order == 1 else squares, argnums=(0, 1))
    _, (of_x, of_weights) = (jax.jit(of_all) if traced else of_all)(x, *variables)
    return of_x, *of_weights
