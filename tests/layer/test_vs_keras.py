"""The same arguments to Keras's layer and to ours: the same results, errors and attributes."""

from __future__ import annotations

import numpy as np
import pytest

from beside_keras import both, keras, numpy, outcome
from keras_cases import FORWARD
from layer_samples import SHAPE, sample
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.reference.oracle import relative_error

CONSTRUCTOR = [
    {},
    {"foo": 1},
    {"foo": 1, "bar": 2},
    {"name": "a/b"},
    {"name": 3},
    {"name": ""},
    {"trainable": 1},
    {"trainable": np.bool_(True)},
    {"dtype": "nope"},
    {"dtype": 3},
    {"kernel_size": (3, 3)},
    {"kernel_size": None},
    {"kernel_size": True},
    {"kernel_size": np.int64(2)},
    {"kernel_size": (np.int64(2),) * 3},
    {"kernel_size": (2.0, 2.0, 2.0)},
    {"kernel_size": 2.0},
    {"kernel_size": "abc"},
    {"kernel_size": "123"},
    {"kernel_size": (1, None, 2)},
    {"kernel_size": 0},
    {"strides": (1, 0, 1)},
    {"strides": (1, 1)},
    {"dilation_rate": -1},
    {"padding": "causal"},
    {"padding": "SAME"},
    {"padding": None},
    {"padding": 3},
    {"padding": [1, 1, 1]},
    {"data_format": "ndhwc"},
    {"data_format": 3},
    {"data_format": "Channels_First"},
    {"activation": "nope"},
    {"activation": 3},
    {"kernel_initializer": "nope"},
    {"kernel_initializer": {}},
    {"kernel_initializer": {"class_name": "Nope", "config": {}}},
    {"kernel_initializer": {"module": None, "class_name": "HeNormal", "config": {}}},
    {"bias_initializer": 3.0},
    {"kernel_regularizer": "nope"},
    {"bias_regularizer": 3},
    {"activity_regularizer": "nope"},
    {"kernel_constraint": "nonneg"},
    {"bias_constraint": 3},
    {"filters": 0},
    {"filters": 2.5},
    {"filters": 4.0},
    {"filters": None},
    {"filters": "a"},
    {"groups": 0},
    {"groups": 2.0},
    {"groups": None},
    {"groups": 3},
    {"strides": (1, 2, 1), "dilation_rate": (2, 1, 1)},
    {"use_bias": None},
    {"lora_rank": 2},
]


@pytest.mark.parametrize("arguments", CONSTRUCTOR)
def test_constructor(arguments):
    arguments = {"filters": 4, "kernel_size": 3, **arguments}
    assert outcome(lambda: Conv3D(**arguments)) == outcome(lambda: keras.layers.Conv3D(**arguments))


BUILD = [
    ({}, (None, 5, 5, 5, 3)),
    ({"groups": 2}, (None, 5, 5, 5, 3)),
    ({"groups": 2}, [None, 5, 5, 5, 3]),
    ({}, (None, 5, 5, 5, None)),
    ({}, (2, 2, 5, 5, 4)),
    ({"groups": 2, "dilation_rate": 2}, (2, 2, 5, 5, 4)),
    ({"padding": "same"}, (2, 2, 5, 5, 4)),
    ({}, (None, 5, 5, 4)),
    ({"data_format": "channels_first"}, (None, 4, 5, 5)),
    ({}, (None, 5, 5, 5, 5, 4)),
    ({}, 3),
    ({}, None),
    ({}, ()),
    ({}, (None, None, None, None, 4)),
    ({"filters": 4.0}, SHAPE),
    ({"filters": None, "name": "c"}, SHAPE),
    ({"kernel_size": (2.0, 2.0, 2.0)}, SHAPE),
    ({"kernel_size": True}, SHAPE),
    ({"padding": [1, 1, 1]}, SHAPE),
    ({"kernel_initializer": "identity"}, SHAPE),
    ({"bias_initializer": "orthogonal"}, SHAPE),
    ({"kernel_initializer": np.ones((2, 2, 2, 1, 3))}, SHAPE),
    ({"kernel_constraint": "non_neg", "lora_rank": 2}, SHAPE),
]


@pytest.mark.parametrize(("arguments", "shape"), BUILD)
def test_build(arguments, shape):
    arguments = {"filters": 4, "kernel_size": 3, **arguments}
    ours, theirs = Conv3D(**arguments), keras.layers.Conv3D(**arguments)
    assert outcome(lambda: ours.build(shape)) == outcome(lambda: theirs.build(shape))
    if ours.built:
        assert [weight.shape for weight in ours.weights] == [tuple(weight.shape) for weight in theirs.weights]
        assert repr(ours.input_spec) == repr(theirs.input_spec)
        assert ours.count_params() == theirs.count_params()


def test_output_shapes_of_many_arguments():
    rng = np.random.default_rng(0)
    for _ in range(200):
        strides, dilation = rng.integers(1, 4, 3), np.ones(3, int)
        if rng.integers(2):
            strides, dilation = dilation, strides
        arguments = {
            "kernel_size": tuple(rng.integers(1, 4, 3)),
            "strides": tuple(strides),
            "dilation_rate": tuple(dilation),
            "padding": rng.choice(["valid", "same"]),
            "data_format": rng.choice(["channels_last", "channels_first"]),
        }
        ours, theirs = Conv3D(4, **arguments), keras.layers.Conv3D(4, **arguments)
        shape = tuple(int(n) for n in rng.integers(7, 12, 5))
        output = ours.compute_output_shape(shape)
        assert output == theirs.compute_output_shape(shape)
        assert output == ours._geometry.spec(shape, "float32", True, ()).output_shape


@pytest.mark.parametrize("shape", [(None, None, 5, 5, 4), [2, 9, 5, 5, 4], (2, 1, 5, 5, 4), (2, 5, 5, 4)])
@pytest.mark.parametrize("arguments", [{}, {"padding": "same", "strides": 2}, {"strides": (3, 1, 2)}])
def test_compute_output_shape(arguments, shape):
    layers = [cls(4, 3, **arguments) for cls in (Conv3D, keras.layers.Conv3D)]
    mine, other = (outcome(lambda layer=layer: layer.compute_output_shape(shape)) for layer in layers)
    assert mine == other
    if mine is None:
        assert layers[0].compute_output_shape(shape) == layers[1].compute_output_shape(shape)


USES = [
    ("built", lambda layer: layer(sample((5, 5, 5, 4)))),
    ("built", lambda layer: layer(sample((2, 5, 5, 5, 3)))),
    ("built", lambda layer: layer([[1.0, 2.0]])),
    ("built", lambda layer: layer(3.0)),
    ("built", lambda layer: layer("s")),
    ("built", lambda layer: layer(None)),
    ("built", lambda layer: layer.set_weights([1])),
    ("built", lambda layer: layer.set_weights([np.ones((2, 2, 2, 3, 3)), np.ones(4)])),
    ("built", lambda layer: layer.quantize("int8")),
    ("built", lambda layer: layer.build(SHAPE)),
    ("unbuilt", lambda layer: layer.count_params()),
    ("unbuilt", lambda layer: layer.set_weights([1])),
    ("unbuilt", lambda layer: layer.quantize("int8")),
    ("unbuilt", lambda layer: layer.enable_lora(2)),
    ("unbuilt", lambda layer: layer(sample((5, 5, 5, 4)))),
    ("unbuilt", lambda layer: layer(sample((2, 5, 5, 5, 5, 4)))),
]


@pytest.mark.parametrize(("state", "use"), USES)
def test_messages_of_a_layer_in_use(state, use):
    ours, theirs = (
        both(name="c") if state == "built" else (cls(4, 3, name="c") for cls in (Conv3D, keras.layers.Conv3D))
    )
    assert repr(ours) == repr(theirs)
    mine = outcome(lambda: use(ours))
    assert mine is not None
    assert mine == outcome(lambda: use(theirs))


def test_attributes():
    ours, theirs = both(name="c", dtype="mixed_float16", activation="relu", strides=2, padding="SAME")
    for name in (
        "name",
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "groups",
        "use_bias",
        "trainable",
        "dtype",
        "compute_dtype",
        "variable_dtype",
        "supports_masking",
        "built",
        "path",
        "autocast",
        "lora_rank",
        "lora_alpha",
        "lora_enabled",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert repr(ours.dtype_policy) == repr(theirs.dtype_policy)
    assert ours.get_build_config() == theirs.get_build_config()
    assert [weight.path for weight in ours.weights] == [weight.path for weight in theirs.weights]


@pytest.mark.parametrize("arguments", FORWARD)
def test_result(arguments):
    if keras.config.backend() != "torch" and arguments.get("dtype") == "float64":
        pytest.skip("this backend returns float32 for float64")
    ours, theirs = both(**arguments)
    for shape in (SHAPE, (1, 7, 6, 5, 4)):
        x = sample(shape)
        mine, other = ours(x), numpy(keras.ops.cast(theirs(x), "float64"))
        assert mine.shape == other.shape
        tolerance = {"float64": 1e-13, "mixed_bfloat16": 1e-2}.get(arguments.get("dtype"), 1e-5)
        assert relative_error(mine, other) < tolerance


def test_channels_first_result():
    arguments = {"filters": 3, "kernel_size": (3, 2, 2), "data_format": "channels_first", "padding": "same"}
    theirs = keras.layers.Conv3D(**arguments)
    x = sample((2, 4, 5, 6, 3))
    other = numpy(theirs(x))
    ours = Conv3D.from_keras(theirs)
    assert relative_error(ours(x), other) < 1e-5


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "glu"])
def test_row_activations_in_channels_first(name):
    theirs = keras.layers.Conv3D(3, 2, data_format="channels_first", activation=name)
    x = sample((2, 4, 5, 5, 5))
    other = numpy(theirs(x))
    assert relative_error(Conv3D.from_keras(theirs)(x), other) < 1e-5
