"""Models of Keras's with our layer: trained, cloned, saved and loaded, beside the same models with Keras's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import processes
from keras_door import all_ours, built, numpy
from layer_samples import sample
from tvm_conv3d.keras import Conv3D, counters

SHAPE = (8, 9, 10, 2)


def functional(cls: Any) -> keras.Model:
    """With a branch, a batch norm and a shared layer."""
    inputs = keras.Input(SHAPE)
    shared = cls(4, 3, padding="same", activation="relu")
    x = shared(cls(4, 1)(inputs))
    x = keras.layers.Add()([x, shared(x)])
    x = keras.layers.BatchNormalization()(cls(8, (3, 2, 3), strides=2)(x))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling3D()(x)))


def sequential(cls: Any) -> keras.Model:
    """Without an input's shape."""
    layers = [cls(4, 3, activation="silu"), keras.layers.MaxPooling3D(2), cls(2, 2, padding="same")]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(1)])


class Subclassed(keras.Model):
    """A model in Python."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.blocks = [cls(4, 3, padding="same", activation="relu") for _ in range(2)]
        self.pool, self.last = keras.layers.GlobalMaxPooling3D(), keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        return self.last(self.pool(inputs))


MODELS = [functional, sequential, Subclassed]


def pair(make: Any) -> tuple[keras.Model, keras.Model]:
    """The model with our layer and with Keras's, with the same weights."""
    ours, theirs = make(Conv3D), make(keras.layers.Conv3D)
    for model in (ours, theirs):
        model(sample((1, *SHAPE)))
    theirs.set_weights([0.2 * sample(weight.shape, seed=number) for number, weight in enumerate(theirs.weights)])
    for weight in theirs.weights:
        if "moving_variance" in weight.path:
            weight.assign(np.abs(numpy(weight)) + 0.5)
    ours.set_weights(theirs.get_weights())
    return ours, theirs


def near(a: Any, b: Any, error: float = 1e-4) -> None:
    np.testing.assert_allclose(numpy(a), numpy(b), rtol=error, atol=error)


@pytest.mark.parametrize("make", MODELS)
def test_predict_and_evaluate(make: Any) -> None:
    ours, theirs = pair(make)
    x, y = sample((5, *SHAPE)), sample((5, 1))
    near(ours.predict(x, batch_size=2, verbose=0), theirs.predict(x, batch_size=2, verbose=0))
    near(ours.predict_on_batch(x), theirs(x))
    for model in (ours, theirs):
        model.compile(loss="mse")
    assert ours.evaluate(x, y, verbose=0) == pytest.approx(theirs.evaluate(x, y, verbose=0), rel=1e-4)
    assert all_ours()


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_training_takes_the_same_way(make: Any, run_eagerly: bool) -> None:
    ours, theirs = pair(make)
    x, y = sample((6, *SHAPE)), sample((6, 1))
    losses = []
    for model in (ours, theirs):
        model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=run_eagerly)
        history = model.fit(x, y, batch_size=3, epochs=3, shuffle=False, verbose=0).history["loss"]
        losses.append([*history, float(model.train_on_batch(x, y))])
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert losses[0][-1] != losses[0][0]
    for mine, own in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        near(mine, own, 1e-3)
    assert all_ours()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        ours, theirs = pair(functional)
    finally:
        keras.config.set_dtype_policy("float32")
    x = sample((2, *SHAPE))
    assert keras.backend.standardize_dtype(ours.layers[1].kernel.dtype) == "float32"
    assert ours.layers[1].compute_dtype == policy.removeprefix("mixed_")
    near(keras.ops.cast(ours(x), "float32"), keras.ops.cast(theirs(x), "float32"), 0.1)
    assert all_ours()


def test_symbolic_shapes() -> None:
    inputs = keras.Input((None, None, None, 2))
    model = keras.Model(inputs, Conv3D(4, 3, strides=2)(inputs))
    assert model.output_shape == (None, None, None, None, 4)
    for size in (5, 8):
        assert model(sample((1, size, size, size, 2))).shape == (
            1,
            (size - 1) // 2,
            (size - 1) // 2,
            (size - 1) // 2,
            4,
        )


@pytest.mark.parametrize("make", [functional, sequential])
def test_clones(make: Any) -> None:
    ours, _ = pair(make)
    clone = keras.models.clone_model(ours)
    if not clone.built:
        clone.build((None, *SHAPE))
    clone.set_weights(ours.get_weights())
    assert any(type(layer) is Conv3D for layer in clone.layers)
    x = sample((2, *SHAPE))
    near(clone(x), ours(x))


def test_a_clone_function_replaces_kerass_layers() -> None:
    ours, theirs = pair(functional)

    def replaced(layer: Any) -> Any:
        if type(layer) is keras.layers.Conv3D:
            return Conv3D.from_config(layer.get_config())
        return type(layer).from_config(layer.get_config())

    clone = keras.models.clone_model(theirs, clone_function=replaced)
    clone.set_weights(theirs.get_weights())
    x = sample((2, *SHAPE))
    near(clone(x), ours(x))


def test_files_of_models(tmp_path: Path) -> None:
    ours, theirs = pair(functional)
    x = sample((2, *SHAPE))
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")
    assert type(loaded.layers[1]) is Conv3D
    near(loaded(x), ours(x))
    # where this package is not at hand
    code = f"""
import keras, numpy
own = keras.layers.Conv3D
model = keras.saving.load_model({str(tmp_path / "ours.keras")!r}, custom_objects={{"tvm_conv3d>Conv3D": own}})
assert type(model.layers[1]) is own
numpy.save({str(tmp_path / "y.npy")!r}, model.predict(numpy.load({str(tmp_path / "x.npy")!r}), verbose=0))
"""
    np.save(tmp_path / "x.npy", x)
    processes.run(code)
    near(np.load(tmp_path / "y.npy"), theirs(x))


@pytest.mark.parametrize("make", MODELS)
def test_files_of_weights_are_kerass_both_ways(make: Any, tmp_path: Path) -> None:
    ours, theirs = pair(make)
    x = sample((2, *SHAPE))
    before = numpy(theirs(x))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.set_weights([np.zeros_like(weight) for weight in ours.get_weights()])
    ours.load_weights(tmp_path / "theirs.weights.h5")
    near(ours(x), before)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.set_weights([np.zeros_like(weight) for weight in theirs.get_weights()])
    theirs.load_weights(tmp_path / "ours.weights.h5")
    near(theirs(x), before)


def test_configs_are_kerass() -> None:
    ours, theirs = (built(cls, name="c", activation="relu", groups=2) for cls in (Conv3D, keras.layers.Conv3D))
    assert ours.get_config() == theirs.get_config()
    assert type(Conv3D.from_config(theirs.get_config())) is Conv3D


class Standardized(Conv3D):
    """A subclass with a convolution of its own."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


def test_a_subclass_is_asked_for_its_convolution() -> None:
    layer, plain, x = built(Standardized, activation="relu"), built(activation="relu"), sample((2, 5, 6, 7, 4))
    kernel = numpy(plain.kernel)
    plain.kernel.assign(kernel - kernel.mean())
    near(layer(x), plain(x))
    assert counters().keras == {}
    assert counters().ours == 2


def test_losses_are_kerass() -> None:
    x = sample((2, 5, 6, 7, 4))
    layers = [
        built(cls, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(0.01))
        for cls in (Conv3D, keras.layers.Conv3D)
    ]
    for layer in layers:
        layer(x)
    near(keras.ops.stack(layers[0].losses), keras.ops.stack(layers[1].losses))
