"""Convolutions with a ReLU and max pools behind them as one step: Keras's numbers and gradients."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from check_models import near

from keras_door import BACKEND, all_ours, numpy
from layer_samples import sample
from tvm_conv3d.keras import accelerate, counters
from tvm_conv3d.keras.backends import BACKEND as DOOR

layers = keras.layers

pytestmark = pytest.mark.skipif(not DOOR.has_pooled_convolutions, reason=f"{BACKEND} takes two steps")

SHAPE = (9, 12, 11, 1)


def stem(filters: int = 16, pool: Any = 2, **arguments: Any) -> keras.Model:
    """Of two pairs."""
    inputs = keras.Input(SHAPE)
    x = layers.MaxPooling3D(pool)(layers.Conv3D(filters, 3, activation="relu", **arguments)(inputs))
    x = layers.MaxPooling3D((1, 2, 1))(layers.Conv3D(3, (2, 3, 3), activation="relu", padding="same")(x))
    return keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling3D()(x)))


@pytest.mark.parametrize("arguments", [{}, {"use_bias": False}, {"filters": 5}, {"padding": "same", "strides": 2}])
@pytest.mark.parametrize("eager", [False, True])
def test_training(arguments: Any, eager: bool) -> None:
    keras.utils.set_random_seed(0)
    model, twin = stem(**arguments), stem(**arguments)
    twin.set_weights(model.get_weights())
    x, y = sample((4, *SHAPE)), sample((4, 1), seed=1)
    fast = accelerate(model)
    assert len(fast.report.pooled) == 2 and "one step: conv3d" in str(fast.report)
    for each in (fast, twin):
        each.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=eager, jit_compile=False)
        for _ in range(3):
            each.train_on_batch(x, y)
    assert all_ours() and counters().ours > 0
    for mine, own in zip(model.weights, twin.weights, strict=True):
        near(mine, own, 1e-4)
    near(fast.predict(x, verbose=0), twin.predict(x, verbose=0), 1e-4)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_inference_asks_for_maxima_only(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stem()
    fast, x = accelerate(model), sample((2, *SHAPE))
    # the convolution by itself
    monkeypatch.setattr(DOOR, "convolve", None)
    fast.compile(run_eagerly=not traced)
    before = counters().ours
    near(fast.predict_on_batch(x), model(x))
    assert counters().ours == before + 2


def test_results_that_others_see_are_left_in_two_steps() -> None:
    inputs = keras.Input(SHAPE)
    seen = layers.Conv3D(4, 3, activation="relu", padding="same")(inputs)
    x = layers.MaxPooling3D(2)(seen)
    linear = layers.MaxPooling3D(2)(layers.Conv3D(4, 3, padding="same")(seen))
    overlapping = layers.MaxPooling3D(3, 2, padding="same")(layers.Conv3D(4, 3, activation="relu", padding="same")(x))
    observed = layers.Conv3D(4, 3, activation="relu", activity_regularizer="l2", padding="same")(linear)
    model = keras.Model(inputs, [overlapping, layers.MaxPooling3D(2)(observed)])
    fast = accelerate(model)
    assert fast.report.pooled == []
    x = sample((2, *SHAPE))
    for mine, own in zip(fast(x, training=True), model(x, training=True), strict=True):
        near(mine, own)


def test_other_types_are_left_in_two_steps() -> None:
    inputs = keras.Input(SHAPE, dtype="bfloat16")
    x = layers.Conv3D(4, 3, activation="relu", dtype="bfloat16")(inputs)
    model = keras.Model(inputs, layers.MaxPooling3D(2, dtype="bfloat16")(x))
    given = keras.ops.cast(sample((2, *SHAPE)), "bfloat16")
    found, own = (keras.ops.cast(each(given, training=True), "float32") for each in (accelerate(model), model))
    near(found, own, 2e-2)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tools of TensorFlow's")
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize(("filters", "pool"), [(16, 2), (3, 2), (3, 1)], ids=["stem", "dense", "no pool"])
def test_gradients_of_gradients_on_tensorflow(traced: bool, filters: int, pool: int) -> None:
    import tensorflow as tf

    inputs = keras.Input((None, None, None, 1))
    y = layers.Conv3D(filters, 3, activation="relu")(inputs)
    own = keras.Model(inputs, y if pool == 1 else layers.MaxPooling3D(pool)(y))
    own.set_weights([0.3 * sample(tuple(weight.shape), seed=9) for weight in own.weights])
    fast = accelerate(own)
    kernel, bias = own.weights

    def all_of(model: Any, x: Any) -> Any:
        given = [x, kernel.value, bias.value]
        with tf.GradientTape() as outer:
            outer.watch(given)
            with tf.GradientTape() as inner:
                inner.watch(given)
                y = model(x, training=True)
                loss = tf.reduce_sum(y * y * y)
            slopes = inner.gradient(loss, given)
            total = tf.add_n([tf.reduce_sum(slope * slope) for slope in slopes])
        return y, *slopes, *outer.gradient(total, given)

    def function(model: Any) -> Any:
        signature = [tf.TensorSpec((None, None, None, None, 1))]
        return (
            tf.function(lambda x: all_of(model, x), input_signature=signature) if traced else lambda x: all_of(model, x)
        )

    x = tf.constant(sample((2, 6, 7, 9, 1)))
    for mine, wanted in zip(function(fast)(x), function(own)(x), strict=True):
        near(mine, wanted, 1e-4)
    assert all_ours()
    assert numpy(function(fast)(tf.zeros((0, 6, 7, 9, 1)))[0]).shape == (0, *(n // pool for n in (4, 5, 7)), filters)
    assert np.abs(numpy(function(fast)(x)[4])).max() > 0
