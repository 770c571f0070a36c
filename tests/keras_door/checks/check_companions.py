"""Max pools and batch norms beside convolutions: the numbers, statistics and gradients of Keras's own layers."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
from check_models import near

from keras_door import BACKEND, numpy
from layer_samples import sample
from tvm_conv3d.bench.training import keras_ways
from tvm_conv3d.bench.training.worker import error_of
from tvm_conv3d.keras import accelerate
from tvm_conv3d.keras.companions import BatchNormalization, MaxPooling3D
from tvm_conv3d.reference.oracle import relative_error

layers = keras.layers

FORMATS = ["channels_last", "channels_first"]


def network(data_format: str, pool: Any, **norm: Any) -> keras.Model:
    """Convolutions, each with a pool and a batch norm."""
    last = data_format == "channels_last"
    inputs = x = keras.Input((9, 12, 11, 2) if last else (2, 9, 12, 11))
    for filters in (4, 3):
        x = layers.Conv3D(filters, 3, padding="same", activation="relu", data_format=data_format)(x)
        x = layers.BatchNormalization(axis=-1 if last else 1, **norm)(layers.MaxPooling3D(**pool)(x))
    x = layers.GlobalAveragePooling3D(data_format=data_format)(x)
    return keras.Model(inputs, layers.Dense(1)(x))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("pool", [{}, {"pool_size": 3, "strides": 2}, {"padding": "same"}, {"pool_size": (1, 3, 2)}])
@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False, "momentum": 0.5, "epsilon": 0.01}])
def test_training_and_inference(data_format: str, pool: Any, norm: Any) -> None:
    pool = {"data_format": data_format, **pool}
    keras.utils.set_random_seed(0)
    model, twin = network(data_format, pool, **norm), network(data_format, pool, **norm)
    twin.set_weights(model.get_weights())
    x, y = sample((4, *model.input_shape[1:])), sample((4, 1), seed=1)
    fast = accelerate(model)
    for each in (fast, twin):
        # small: rounding errors grow with each step
        each.compile(keras.optimizers.SGD(0.005), "mse")
        for _ in range(3):
            each.train_on_batch(x, y)
    for mine, own in zip(model.weights, twin.weights, strict=True):
        near(mine, own, 1e-4)
    near(fast.predict(x, verbose=0), twin.predict(x, verbose=0), 1e-3)
    companions = [type(part) for part in fast.report.beside]
    assert len(companions) == (2 if BACKEND == "jax" else 4)


@pytest.mark.skipif(BACKEND != "torch", reason="all statistics and formats are of Keras's torch backend")
@pytest.mark.parametrize("data_format", FORMATS)
def test_companions_compute_beside_keras(data_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not ask Keras's layer, and give its numbers."""
    axis, shape = (-1, (3, 6, 8, 4, 5)) if data_format == "channels_last" else (1, (3, 5, 6, 8, 4))
    pools = [cls(2, data_format=data_format) for cls in (MaxPooling3D, layers.MaxPooling3D)]
    norms = [cls(axis=axis) for cls in (BatchNormalization, layers.BatchNormalization)]
    x = sample(shape) * 3 + 1
    wanted = [numpy(pools[1](x)), numpy(norms[1](x, training=True)), numpy(norms[1](x))]
    for cls in (layers.MaxPooling3D, layers.BatchNormalization):
        monkeypatch.setattr(cls, "call", None)
    found = [numpy(pools[0](x)), numpy(norms[0](x, training=True)), numpy(norms[0](x))]
    for mine, own in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, own, rtol=1e-5, atol=1e-5)
    for mine, own in zip(norms[0].weights, norms[1].weights, strict=True):
        near(mine, own, 1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tools of TensorFlow's")
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_batch_norms_and_their_gradients_on_tensorflow(
    traced: bool, affine: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of Keras's layer in float64; of second order their differences, as Keras's own are off by parts."""
    import tensorflow as tf

    shape, step = (2, 4, 5, 3, 17), 1e-4
    x, of_y, along = (sample(shape, seed=seed).astype("float32").astype("float64") for seed in (1, 2, 3))
    x = x * 4 + 8
    classes = {"float32": BatchNormalization, "float64": layers.BatchNormalization}
    norms = {dtype: cls(scale=affine, center=affine, dtype=dtype) for dtype, cls in classes.items()}
    for norm in norms.values():
        norm.build(shape)
        norm.set_weights([np.abs(sample((17,), seed=number)) + 0.5 for number, _ in enumerate(norm.weights)])

    def all_of(norm: Any, x: Any, of_y: Any, along: Any) -> Any:
        given = [x, *(weight.value for weight in norm.trainable_weights)]
        with tf.GradientTape() as outer:
            outer.watch(given)
            with tf.GradientTape() as inner:
                inner.watch(given)
                y = norm(x, training=training)
                loss = tf.reduce_sum(y * y * of_y)
            slopes = inner.gradient(loss, given)
            total = tf.reduce_sum(slopes[0] * along)
        return y, *slopes, outer.gradient(total, x)

    def results(dtype: str, x: np.ndarray) -> list[np.ndarray]:
        function = functools.partial(all_of, norms[dtype])
        sizes = tf.TensorSpec((None, None, None, None, 17), dtype)
        called = tf.function(function, input_signature=[sizes] * 3) if traced else function
        return [each.numpy() for each in called(*(tf.constant(each.astype(dtype)) for each in (x, of_y, along)))]

    after, before = (results("float64", x + way * step * along)[1] for way in (1, -1))
    for norm in norms.values():
        norm.set_weights([np.abs(sample((17,), seed=number)) + 0.5 for number, _ in enumerate(norm.weights)])
    *wanted, _ = results("float64", x)
    with monkeypatch.context() as context:
        context.setattr(layers.BatchNormalization, "call", None)
        *found, curved = results("float32", x)
    for mine, own in zip(found, wanted, strict=True):
        # of all together: in sums over positions large terms cancel
        assert relative_error(mine, own) < 1e-6
    near(curved, (after - before) / (2 * step), 1e-5)
    for mine, own in zip(norms["float32"].weights, norms["float64"].weights, strict=True):
        near(mine, own, 1e-6)


class Maxima:
    """Windows of 2 x 3 x 2 cells, all of whose numbers differ, with their maxima and derivatives by NumPy."""

    window = (2, 3, 2)
    x, of_y, along = sample((2, 5, 6, 4, 3)), sample((2, 2, 2, 2, 3), seed=2), sample((2, 5, 6, 4, 3), seed=3)

    def __init__(self) -> None:
        self._cells = self._windows(self.x).argmax(-1)[..., None]
        numbers = self._windows(np.arange(self.x.size).reshape(self.x.shape))
        of_x = np.zeros_like(self.x)
        of_x.flat[np.take_along_axis(numbers, self._cells, -1)] = self.of_y[..., None]
        self.y, self.tangent = self._picked(self.x), self._picked(self.along)
        # of the sum of the squares: the gradient's derivative along `along`
        self.of_x, self.curved = of_x, np.where(of_x != 0, 2 * self.along, 0)

    @staticmethod
    def _windows(whole: np.ndarray) -> np.ndarray:
        parts = whole[:, :4].reshape(2, 2, 2, 2, 3, 2, 2, 3).transpose(0, 1, 3, 5, 7, 2, 4, 6)
        return parts.reshape(2, 2, 2, 2, 3, 12)

    def _picked(self, whole: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self._windows(whole), self._cells, -1)[..., 0]


@pytest.mark.skipif(BACKEND != "jax", reason="tools of JAX's")
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
def test_maxima_and_their_derivatives_on_jax(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    right, layer = Maxima(), MaxPooling3D(Maxima.window)
    monkeypatch.setattr(layers.MaxPooling3D, "call", None)

    def weighed(x: Any, of_y: Any) -> Any:
        return (layer(x) * of_y).sum()

    def squared(x: Any) -> Any:
        return (layer(x) ** 2).sum()

    def all_of(x: Any, of_y: Any, along: Any) -> Any:
        mapped = jax.vmap(jax.grad(weighed))(jax.numpy.stack([x, -x]), jax.numpy.stack([of_y, of_y]))
        curved = jax.jvp(jax.grad(squared), (x,), (along,))[1]
        return *jax.jvp(layer, (x,), (along,)), jax.grad(weighed)(x, of_y), mapped[0], curved

    given = map(jax.numpy.asarray, (right.x, right.of_y, right.along))
    found = (jax.jit(all_of) if traced else all_of)(*given)
    for mine, wanted in zip(found, (right.y, right.tangent, right.of_x, right.of_x, right.curved), strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tools of TensorFlow's")
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_maxima_and_their_gradients_on_tensorflow(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    right, layer = Maxima(), MaxPooling3D(Maxima.window)
    monkeypatch.setattr(layers.MaxPooling3D, "call", None)

    def all_of(x: Any, of_y: Any, along: Any) -> Any:
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                y = layer(x)
                weighed, squared = tf.reduce_sum(y * of_y), tf.reduce_sum(y * y)
            slope = tf.reduce_sum(inner.gradient(squared, x) * along)
        return y, inner.gradient(weighed, x), outer.gradient(slope, x)

    sizes = tf.TensorSpec((None, None, None, None, 3))
    signature = [sizes, sizes, sizes]
    function = tf.function(all_of, input_signature=signature) if traced else all_of
    found = function(*map(tf.constant, (right.x, right.of_y, right.along)))
    for mine, wanted in zip(found, (right.y, right.of_x, right.curved), strict=True):
        np.testing.assert_array_equal(numpy(mine), wanted)
    none, of_none = (0, 4, 3, 4, 3), (0, 2, 1, 2, 3)
    found = function(*map(tf.zeros, (none, of_none, none)))
    assert [numpy(each).shape for each in found] == [of_none, none, none]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype: str) -> None:
    if BACKEND == "tensorflow" and dtype != "bfloat16":
        pytest.skip("TensorFlow has no max pools of these types on CPUs")
    inputs = keras.Input((6, 6, 6, 2), dtype=dtype)
    x = layers.Conv3D(4, 3, dtype=dtype)(inputs)
    x = layers.BatchNormalization(dtype=dtype)(layers.MaxPooling3D(2, dtype=dtype)(x))
    model = keras.Model(inputs, x)
    given = sample((2, 6, 6, 6, 2)).astype("float32")
    near(keras.ops.cast(accelerate(model)(given), "float32"), keras.ops.cast(model(given), "float32"), 2e-2)


def test_frozen_norms_keep_their_statistics() -> None:
    model = network("channels_last", {})
    for layer in model.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    fast = accelerate(model)
    x = sample((2, *model.input_shape[1:]))
    before = [numpy(weight) for weight in model.non_trainable_weights]
    near(fast(x, training=True), model(x, training=True))
    for value, weight in zip(before, model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(value, numpy(weight))


@pytest.mark.parametrize("kind", ["step", "inference"])
def test_the_network_of_the_benchmark(kind: str) -> None:
    """Its modes have the gradients and results of float64."""
    pytest.importorskip("torch", reason="float64 is PyTorch's")
    network = keras_ways.prepare(kind, True)
    right = network.exact()
    for mode in ("plain", "ours"):
        assert error_of(network.way(mode).outcome(), right) < 1e-4
    # a norm behind a bias that lets all numbers pass leaves it no gradient
    assert all(np.abs(each).max() > 1e-3 for each in right if each.ndim > 1)
