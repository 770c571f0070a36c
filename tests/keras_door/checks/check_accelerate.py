"""`accelerate`: any model, with the numbers of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from check_models import SHAPE, Subclassed, functional, near, sequential

from keras_door import all_ours, compiled, numpy
from layer_samples import sample
from tvm_conv3d.keras import Conv3D, accelerate, counters, restore

layers = keras.layers


def chained(data_format: str = "channels_last") -> keras.Model:
    """Convolutions with batch norms and activations behind them, and what can't be a part of a kernel."""
    inputs = keras.Input(SHAPE if data_format == "channels_last" else (SHAPE[-1], *SHAPE[:-1]))
    axis = -1 if data_format == "channels_last" else 1

    def conv(filters: int, **arguments: Any) -> Any:
        return layers.Conv3D(filters, 3, padding="same", data_format=data_format, **arguments)

    x = layers.BatchNormalization(axis=axis)(conv(4, use_bias=False, name="first")(inputs))
    x = layers.ReLU()(x)
    x = layers.LeakyReLU(negative_slope=0.1)(conv(4, name="second")(x))
    shared = conv(4, name="shared")
    seen = conv(4, name="seen")(x)
    x = layers.Activation("silu")(layers.BatchNormalization(axis=axis, scale=False)(conv(4, name="third")(x)))
    x = layers.Activation("relu")(shared(layers.Activation("tanh")(shared(x))))
    x = layers.BatchNormalization(axis=axis, center=False)(conv(4, name="fourth", activation="relu")(x))
    x = layers.Add()([x, layers.ReLU()(seen), seen])
    return keras.Model(inputs, [layers.Softmax(axis=axis)(conv(3, name="last")(x)), seen])


def settled(model: Any, x: np.ndarray) -> Any:
    """The model with weights and statistics at random."""
    model(x)
    for number, weight in enumerate(model.weights):
        values = 0.3 * sample(tuple(weight.shape), seed=number)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model


def flat(results: Any) -> list[Any]:
    return results if isinstance(results, list) else [results]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_what_follows_convolutions_is_a_part_of_their_kernels(data_format: str) -> None:
    x = sample((2, *SHAPE) if data_format == "channels_last" else (2, SHAPE[-1], *SHAPE[:-1]))
    model = settled(chained(data_format), x)
    fast = accelerate(model)
    for mine, own in zip(fast(x), model(x), strict=True):
        near(mine, own)
    assert all_ours()
    assert counters().ours == 8
    assert [line.split(" + ")[0] for line in fast.report.fused] == ["first", "second", "third"]
    assert [line.count(" + ") for line in fast.report.fused] == [2, 1, 2]
    # the model itself goes its own way
    model(x)
    assert counters().ours == 8


@pytest.mark.parametrize("make", [lambda: functional(layers.Conv3D), lambda: sequential(layers.Conv3D), chained])
def test_functional_models(make: Any) -> None:
    x = sample((2, *SHAPE))
    model = settled(make(), x)
    fast = accelerate(model)
    assert type(fast) is type(model)
    for mine, own in zip(flat(fast.predict(x, verbose=0)), flat(model.predict(x, verbose=0)), strict=True):
        near(mine, own)
    assert all_ours()
    assert fast.report.left == {}
    assert "convolutions replaced" in str(fast.report)


class Block(layers.Layer):
    """A layer of others, in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [layers.Conv3D(4, 3, padding="same"), layers.ReLU()]
        self.others = {"last": layers.Conv3D(2, 1)}

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return self.others["last"](x)


def nested() -> keras.Model:
    """A functional model, a sequential one and a layer of layers in a functional one."""
    inputs = keras.Input(SHAPE)
    inner = keras.Input((*SHAPE[:-1], 2))
    inside = keras.Model(inner, layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(2, 3, padding="same")(inner))))
    row = keras.Sequential([keras.Input((*SHAPE[:-1], 2)), layers.Conv3D(2, 3), layers.LeakyReLU(negative_slope=0.2)])
    return keras.Model(inputs, row(inside(Block()(inside(inputs)))))


def test_models_in_models() -> None:
    x = sample((2, *SHAPE))
    model = settled(nested(), x)
    fast = accelerate(model)
    near(fast(x), model(x))
    assert counters().ours == 5
    assert len(fast.report.fused) == 2


def test_subclassed_models() -> None:
    x = sample((2, *SHAPE))
    model = settled(Subclassed(layers.Conv3D), x)
    fast = accelerate(model)
    near(fast(x), model(x))
    assert counters().ours == 2
    assert len(fast.report.replaced) == 2
    assert type(model.blocks[0]) is layers.Conv3D


def test_weights_are_shared_and_training_trains_the_model() -> None:
    x, y = sample((4, *SHAPE)), sample((4, 1))
    model, twin = (settled(functional(layers.Conv3D), x) for _ in range(2))
    for each in (model, twin):
        each.compile(keras.optimizers.SGD(1e-3), "mse")
    fast = accelerate(model)
    before = numpy(fast(x))
    for each in (fast, twin):
        each.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0)
    for mine, own in zip(model.get_weights(), twin.get_weights(), strict=True):
        near(mine, own, 1e-3)
    assert all(mine is own for mine, own in zip(fast.weights, model.weights, strict=True))
    assert np.abs(numpy(fast(x)) - before).max() > 1e-4
    near(fast(x), model(x), 1e-3)
    assert counters().keras == {}


def test_statistics_may_change() -> None:
    x = sample((2, *SHAPE))
    model = settled(chained(), x)
    fast = accelerate(model)
    for seed in (20, 21):
        for weight in model.weights:
            if "moving" in weight.path:
                weight.assign(np.abs(sample(tuple(weight.shape), seed=seed)) + 0.3)
        for mine, own in zip(fast(x), model(x), strict=True):
            near(mine, own)


def test_training_has_statistics_of_the_batch() -> None:
    x = sample((3, *SHAPE))
    model = settled(chained(), x)
    fast = accelerate(model)
    for mine, own in zip(fast(x, training=True), settled(model, x)(x, training=True), strict=True):
        near(mine, own, 1e-3)


def test_compiled_functions() -> None:
    x = sample((2, *SHAPE))
    model = settled(chained(), x)
    fast = accelerate(model)
    given = keras.ops.convert_to_tensor(x)
    for mine, own in zip(compiled(lambda t: fast(t, training=False))(given), model(x), strict=True):
        near(mine, own)
    assert all_ours()


def test_restore_and_files(tmp_path: Path) -> None:
    x = sample((2, *SHAPE))
    model = settled(chained(), x)
    fast = accelerate(model)
    assert restore(fast) is model
    fast.save(tmp_path / "fast.keras")
    for mine, own in zip(keras.saving.load_model(tmp_path / "fast.keras")(x), model(x), strict=True):
        near(mine, own)
    fast.save_weights(tmp_path / "fast.weights.h5")
    settled(model, x)
    model.load_weights(tmp_path / "fast.weights.h5")


def test_parts_of_the_copy_have_the_numbers_of_the_model() -> None:
    x = sample((2, *SHAPE))
    model = settled(chained(), x)
    fast = accelerate(model)
    for name in ("first", "second", "fourth"):
        part, own = (keras.Model(each.input, each.get_layer(name).output) for each in (fast, model))
        near(part(x), own(x))


def test_the_model_is_untouched() -> None:
    x = sample((2, *SHAPE))
    model = settled(chained(), x)
    before = {layer.name: (type(layer), dict(vars(layer)), len(layer._inbound_nodes)) for layer in model.layers}
    for y in accelerate(model)(x):
        # JAX computes, and counts, while the next test runs, if nobody waits for it
        numpy(y)
    for layer in model.layers:
        kind, attributes, nodes = before[layer.name]
        assert type(layer) is kind and len(layer._inbound_nodes) == nodes
        assert vars(layer).keys() == attributes.keys()


class Weighted(layers.Conv3D):
    """A subclass."""


def test_what_is_left_alone_is_named() -> None:
    x = sample((2, *SHAPE))
    model = settled(keras.Sequential([keras.Input(SHAPE), Weighted(2, 3, name="odd"), layers.Conv3D(2, 1)]), x)
    fast = accelerate(model)
    ((path, why),) = fast.report.left.items()
    assert path.endswith("odd") and "Weighted is a subclass" in why
    near(fast(x), model(x))
    assert counters().ours == 1


def test_frozen_and_already_replaced_layers() -> None:
    x = sample((2, *SHAPE))
    frozen = layers.Conv3D(2, 3, name="frozen")
    model = settled(keras.Sequential([keras.Input(SHAPE), frozen, Conv3D(2, 1), layers.ReLU()]), x)
    frozen.trainable = False
    fast = accelerate(model)
    near(fast(x), model(x))
    assert len(fast.trainable_weights) == 2
    assert accelerate(layers_without_convolutions()).report.replaced == []


def layers_without_convolutions() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"accelerate takes a keras.Model. Received"):
        accelerate(layers.Dense(3))
    with pytest.raises(ValueError, match=r"Layer 'bare' is not built.*call it once"):
        accelerate(keras.Sequential([layers.Conv3D(2, 3, name="bare")]))
    with pytest.raises(TypeError, match=r"restore takes what"):
        restore(layers_without_convolutions())


def untouched(model: Any, function: Any) -> Any:
    """What the function makes of the model, whose layers have the same attributes afterwards."""
    parts = [model, *model.layers]
    before = [(type(part), dict(vars(part))) for part in parts]
    try:
        return function(model)
    finally:
        for part, (kind, attributes) in zip(parts, before, strict=True):
            assert type(part) is kind
            assert {name: id(value) for name, value in vars(part).items()} == {
                name: id(value) for name, value in attributes.items()
            }


class Unclonable(layers.Layer, ValueError):  # noqa: N818  (no error, but made like one)
    """A layer with memory that is not Python's, holding a convolution."""

    def __init__(self) -> None:
        super().__init__(name="odd")
        self.inner = layers.Conv3D(2, 1)

    def call(self, x: Any) -> Any:
        return self.inner(x)


def test_a_layer_that_can_not_be_copied_is_named() -> None:
    model = keras.Sequential([keras.Input(SHAPE), layers.Conv3D(2, 3), Unclonable()])
    x = sample((1, *SHAPE))
    before = numpy(model(x))
    with pytest.raises(TypeError, match=r"can't copy layer 'odd' of type .*Unclonable.*The model is as it was"):
        untouched(model, accelerate)
    np.testing.assert_array_equal(numpy(model(x)), before)


def test_a_convolution_of_a_type_that_no_kernel_has_is_left_and_named() -> None:
    whole = layers.Conv3D(2, 1, name="whole")
    model = keras.Sequential([keras.Input(SHAPE), layers.Conv3D(2, 3), whole])
    whole.dtype_policy = keras.DTypePolicy("int8")
    report = untouched(model, accelerate).report
    ((path, why),) = report.left.items()
    assert path.endswith("whole") and why == "it computes in int8"
    assert len(report.replaced) == 1


def test_quantized_layers_stay_as_they_are() -> None:
    x = sample((2, *SHAPE))
    model = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv3D(2, 3), layers.Flatten(), layers.Dense(8), layers.ReLU()]
    )
    model.quantize("int8")
    assert model.layers[2].quantization_mode == "int8"
    fast = untouched(model, accelerate)
    near(fast(x), model(x), 1e-2)
    assert fast.layers[2] is model.layers[2]
    assert counters().ours == 1
