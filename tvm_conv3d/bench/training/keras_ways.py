"""keras-io's 3-D network of CT scans, in training and inference, by Keras's own layers and by this package's."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tvm_conv3d.bench.training import exact
from tvm_conv3d.bench.training.results import INFERENCE
from tvm_conv3d.bench.training.ways import Network, Way
from tvm_conv3d.keras import accelerate

#: "plain" is what Keras does with `jit_compile=False`: on tensorflow a `tf.function`, elsewhere eager code. XLA of
#: TensorFlow's holds none of this package's convolutions.
MODES = (
    ("plain", "eager", "jit", "ours", "ours_eager")
    if keras.config.backend() == "tensorflow"
    else ("plain", "jit", "ours", "ours_jit")
)

#: Cells of a scan, width, height and depth in the example's order.
SIZE = (128, 128, 64)

_FILTERS = (64, 64, 128, 256)


def ct_network(size: tuple[int, int, int] = SIZE, filters: tuple[int, ...] = _FILTERS) -> keras.Model:
    """That of https://keras.io/examples/vision/3D_image_classification, weights by Keras's seed."""
    layers = keras.layers
    x = inputs = keras.Input((*size, 1))
    for count in filters:
        x = layers.Conv3D(count, kernel_size=3, activation="relu")(x)
        x = layers.BatchNormalization()(layers.MaxPooling3D(pool_size=2)(x))
    x = layers.Dense(512, activation="relu")(layers.GlobalAveragePooling3D()(x))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Dropout(0.3)(x)))


def prepare(kind: str, small: bool) -> Network:
    """The network, with the same weights and data for all modes.

    Args:
        kind: what is timed.
        small: a network and a scan for tests.
    """
    size, filters = ((10, 12, 10), (4, 4)) if small else (SIZE, _FILTERS)
    samples = 1 if kind == INFERENCE else 2
    generator = np.random.default_rng(0)
    x = generator.random((samples, *size, 1), dtype=np.float32)
    y = np.arange(samples, dtype=np.float32)[:, None] % 2

    def network() -> keras.Model:
        keras.utils.set_random_seed(0)
        own = ct_network(size, filters)
        return _with_features(own) if kind == INFERENCE else own

    def way(mode: str) -> Way:
        own = network()
        model = accelerate(own) if mode.startswith("ours") else own
        how = {"jit_compile": mode.endswith("jit"), "run_eagerly": mode.endswith("eager")}
        return _inference(model, x, how) if kind == INFERENCE else _step(model, x, y, how)

    return Network(way, lambda: exact.outcome(network(), kind, x, y))


def _with_features(model: Any) -> keras.Model:
    """The same with what the convolutions found, too: of a sigmoid alone little could be told."""
    pool = next(layer for layer in model.layers if isinstance(layer, keras.layers.GlobalAveragePooling3D))
    return keras.Model(model.input, [pool.output, *model.outputs])


def _inference(model: Any, x: np.ndarray, how: dict[str, bool]) -> Way:
    model.compile(**how)
    return Way(lambda: [np.asarray(each) for each in model.predict_on_batch(x)], lambda: model.predict_on_batch(x))


def _step(model: Any, x: np.ndarray, y: np.ndarray, how: dict[str, bool]) -> Way:
    drop = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))

    def train(optimizer: Any, rate: float) -> None:
        # a change of the rate needs a new step
        drop.rate = rate
        model.compile(optimizer, "binary_crossentropy", **how)

    def gradients() -> list[np.ndarray]:
        """What a step of gradient descent at rate 1 takes off the weights, without chance."""
        train(keras.optimizers.SGD(1.0), 0.0)
        before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.trainable_weights]
        model.train_on_batch(x, y)
        after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
        train(keras.optimizers.Adam(1e-4), 0.3)
        return [first - second for first, second in zip(before, after, strict=True)]

    return Way(gradients, lambda: model.train_on_batch(x, y))
