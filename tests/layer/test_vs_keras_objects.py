"""Keras's activations, initializers, regularizers and constraints, states and configs beside ours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from beside_keras import both, keras, numpy
from layer_samples import SHAPE, sample
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import activations, constraints, initializers, regularizers
from tvm_conv3d.reference.oracle import relative_error
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS

# Activations

POINTS = np.concatenate([np.linspace(-9, 9, 73), [-1.0, -0.5, 0.5, 1.0, 3.0, 6.0]])


@pytest.mark.parametrize("name", [*FUSED_ACTIVATIONS, "softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activation_values(name, dtype):
    x = POINTS.astype(dtype)
    other = numpy(keras.activations.get(name)(keras.ops.convert_to_tensor(x)))
    tolerance = 1e-12 if dtype == "float64" and keras.config.backend() == "torch" else 3e-6
    if name == "softplus":
        # torch answers x itself above 20, which POINTS stays below; elsewhere it rounds more.
        tolerance = max(tolerance, 1e-7)
    np.testing.assert_allclose(activations.get(name)(x), other, rtol=tolerance, atol=tolerance)


def test_glu_and_threshold_values():
    x = POINTS[:72].reshape(9, 8).astype(np.float32)
    np.testing.assert_allclose(activations.glu(x), numpy(keras.activations.glu(x)), rtol=1e-5, atol=1e-6)
    theirs = numpy(keras.activations.threshold(x, 0.5, 7.0))
    np.testing.assert_allclose(activations.threshold(x, 0.5, 7.0), theirs)


@pytest.mark.parametrize("options", [{"negative_slope": 0.5}, {"max_value": 5.0}, {"threshold": 1.0}])
def test_relu_options(options):
    theirs = numpy(keras.activations.relu(keras.ops.convert_to_tensor(POINTS), **options))
    np.testing.assert_allclose(activations.relu(POINTS, **options), theirs, rtol=1e-12)


@pytest.mark.parametrize("name", [*FUSED_ACTIVATIONS, "softmax", "log_softmax", "glu", "sparsemax", "threshold"])
def test_activation_names_and_functions(name):
    theirs = keras.activations.get(name)
    assert activations.serialize(theirs) == keras.activations.serialize(theirs) == name
    assert activations.get(theirs) is theirs
    split = activations.split(theirs)
    assert split == activations.split(activations.get(name))
    assert split.fused == (name if name in FUSED_ACTIVATIONS else "linear")


def test_sparsemax_of_keras_is_replaced():
    # Keras 3.15.1's own is wrong on every backend (keras#23425).
    layer = Conv3D(4, 1, activation=keras.activations.sparsemax)
    np.testing.assert_allclose(layer(sample()).sum(axis=-1), 1, rtol=1e-5)


def test_keras_layer_as_activation():
    ours, theirs = both(activation=keras.layers.LeakyReLU(0.3))
    x = sample()
    assert relative_error(ours(x), numpy(theirs(x))) < 1e-5
    assert isinstance(ours(x), np.ndarray)
    assert ours.get_config()["activation"] == theirs.get_config()["activation"]
    assert isinstance(Conv3D.from_config(theirs.get_config()).activation, keras.layers.LeakyReLU)


def test_keras_op_as_activation():
    ours, theirs = both(activation=keras.ops.square)
    x = sample()
    assert relative_error(ours(x), numpy(theirs(x))) < 1e-5


# Initializers, regularizers, constraints

KERNEL = (3, 3, 3, 8, 32)
RANDOM = [
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "variance_scaling",
    "orthogonal",
]


@pytest.mark.parametrize("name", RANDOM)
def test_initializer_distributions(name):
    mine = initializers.get(name)(KERNEL).astype(np.float64)
    other = numpy(keras.initializers.get(name)(KERNEL)).astype(np.float64)
    np.testing.assert_allclose(mine.std(), other.std(), rtol=0.05)
    np.testing.assert_allclose(
        np.quantile(mine, [0.01, 0.2, 0.8, 0.99]), np.quantile(other, [0.01, 0.2, 0.8, 0.99]), rtol=0.15
    )


@pytest.mark.parametrize(
    "name", [*RANDOM, "zeros", "ones", "identity", "zero", "one", "normal", "uniform", "Orthogonal"]
)
def test_initializer_configs(name):
    mine, other = initializers.get(name), keras.initializers.get(name)
    config = keras.initializers.serialize(other)
    if name != "identity":
        # Keras's Identity leaves its gain out.
        assert initializers.serialize(mine) == config
    assert type(keras.initializers.get(initializers.serialize(mine))) is type(other)
    assert type(initializers.get(config)) is type(mine)


def test_keras_initializer_is_kept_and_called():
    theirs = keras.initializers.HeNormal(seed=3)
    layer = Conv3D(4, 3, kernel_initializer=theirs, bias_initializer=keras.initializers.Constant(2.0))
    assert layer.kernel_initializer is theirs
    layer.build(SHAPE)
    np.testing.assert_array_equal(layer.get_weights()[0], numpy(keras.initializers.HeNormal(seed=3)((3, 3, 3, 4, 4))))
    np.testing.assert_array_equal(layer.get_weights()[1], np.full(4, 2))
    config = layer.get_config()["kernel_initializer"]
    assert config == keras.initializers.serialize(theirs)


def test_keras_seed_generator():
    ours = initializers.HeNormal(seed=keras.random.SeedGenerator(5))
    assert np.abs(ours((3, 3)) - ours((3, 3))).max() > 0
    config = keras.initializers.serialize(keras.initializers.HeNormal(seed=keras.random.SeedGenerator(5)))
    assert initializers.get(config).seed._seed == 5
    assert keras.initializers.get(initializers.serialize(initializers.get(config))).seed._initial_seed == 5


@pytest.mark.parametrize("name", ["l1", "l2", "l1l2", "L1L2"])
def test_regularizers(name):
    x = sample((3, 4))
    theirs = keras.regularizers.get(name)
    np.testing.assert_allclose(regularizers.get(name)(x), numpy(theirs(keras.ops.convert_to_tensor(x))), rtol=1e-5)
    mine, other = regularizers.serialize(regularizers.get(name)), keras.regularizers.serialize(theirs)
    assert mine["class_name"] == other["class_name"]
    assert mine["config"] == pytest.approx(other["config"])


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_regularizer(mode):
    x = sample((3, 4))
    theirs = keras.regularizers.OrthogonalRegularizer(0.5, mode)(keras.ops.convert_to_tensor(x))
    np.testing.assert_allclose(regularizers.OrthogonalRegularizer(0.5, mode)(x), numpy(theirs), rtol=1e-5)


@pytest.mark.parametrize("name", ["MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"])
@pytest.mark.parametrize("axis", [0, [0, 1, 2, 3]])
def test_constraints(name, axis):
    w = 3 * sample((2, 2, 2, 3, 4))
    options = {} if name == "NonNeg" else {"axis": axis}
    mine, other = getattr(constraints, name)(**options), getattr(keras.constraints, name)(**options)
    np.testing.assert_allclose(mine(w), numpy(other(w)), rtol=1e-5)
    assert constraints.serialize(mine) == keras.constraints.serialize(other)
    assert constraints.get(keras.constraints.serialize(other)).get_config() == mine.get_config()


# State


def test_losses():
    arguments = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}
    ours, theirs = both(**arguments)
    for trainable in (True, False):
        ours.trainable = theirs.trainable = trainable
        ours(sample())
        theirs(sample())
        assert len(ours.losses) == (3 if trainable else 1)
        np.testing.assert_allclose(ours.losses, [float(numpy(loss)) for loss in theirs.losses], rtol=1e-5)


def test_keras_objects_in_use():
    arguments = {
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "activity_regularizer": keras.regularizers.L1(0.1),
        "kernel_constraint": keras.constraints.MaxNorm(0.5),
    }
    ours, theirs = both(**arguments)
    ours(sample())
    theirs(sample())
    np.testing.assert_allclose(ours.losses, [float(numpy(loss)) for loss in theirs.losses], rtol=1e-5)
    ours.apply_constraints()
    np.testing.assert_allclose(ours.get_weights()[0], numpy(arguments["kernel_constraint"](theirs.kernel)), rtol=1e-5)


CONFIGS = [
    {},
    {
        "kernel_size": (3, 2, 1),
        "strides": (1, 2, 1),
        "padding": "same",
        "groups": 2,
        "activation": "hard_swish",
        "use_bias": False,
        "data_format": "channels_first",
        "kernel_initializer": {"class_name": "HeNormal", "config": {"seed": 3}},
        "bias_initializer": {"class_name": "Constant", "config": {"value": 2.0}},
        "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.5}},
        "activity_regularizer": "l2",
        "kernel_constraint": "max_norm",
        "bias_constraint": "non_neg",
        "trainable": False,
    },
    {"dtype": "mixed_bfloat16", "kernel_initializer": None, "bias_initializer": None},
    {"lora_rank": 2, "lora_alpha": 8},
]


@pytest.mark.parametrize("arguments", CONFIGS)
def test_configs_both_ways(arguments):
    arguments = {"filters": 4, "kernel_size": 3, "name": "c", **arguments}
    ours, theirs = Conv3D(**arguments), keras.layers.Conv3D(**arguments)
    assert ours.get_config() == theirs.get_config()
    assert keras.layers.Conv3D.from_config(ours.get_config()).get_config() == theirs.get_config()
    for config in (theirs.get_config(), json.loads(json.dumps(theirs.get_config()))):
        assert Conv3D.from_config(config).get_config() == theirs.get_config()


def test_registered_objects():
    @keras.saving.register_keras_serializable("tvm_conv3d_test")
    def gate(x):
        return x * 2

    theirs = keras.layers.Conv3D(2, 1, activation=gate, name="c")
    ours = Conv3D.from_config(theirs.get_config())
    assert ours.activation is gate
    assert ours.get_config() == theirs.get_config()


def test_keras_policy_and_defaults():
    assert Conv3D(2, 1, dtype=keras.DTypePolicy("mixed_float16")).compute_dtype == "float16"
    with pytest.raises(ValueError, match="int8_from_float32"):
        Conv3D(2, 1, dtype="int8_from_float32")
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        keras.config.set_image_data_format("channels_first")
        layer = Conv3D(2, 1)
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)
    assert (layer.compute_dtype, layer.data_format) == ("bfloat16", "channels_first")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"activation": "swish", "kernel_regularizer": "l2", "groups": 2, "use_bias": False},
        {"activation": lambda x: x * 2, "kernel_initializer": "he_normal"},
        {"dtype": "mixed_float16", "trainable": False, "name": "mine"},
        {"lora_rank": 2},
    ],
)
def test_from_keras(arguments):
    theirs = keras.layers.Conv3D(4, 3, **arguments)
    unbuilt = Conv3D.from_keras(theirs)
    assert not unbuilt.built
    x = sample()
    other = numpy(keras.ops.cast(theirs(x), "float64"))
    ours = Conv3D.from_keras(theirs)
    assert ours.built
    assert (ours.name, ours.trainable) == (theirs.name, theirs.trainable)
    assert len(ours.weights) == len(theirs.weights)
    for mine, original in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, original)
    assert relative_error(ours(x), other) < (5e-3 if "dtype" in arguments else 1e-5)
    # The twin lives without Keras.
    assert isinstance(ours.kernel_initializer, initializers.Initializer)


def test_from_keras_refuses_other_layers():
    for layer in (keras.layers.Conv2D(2, 1), keras.layers.Conv3DTranspose(2, 1), Conv3D(2, 1)):
        with pytest.raises(TypeError, match=r"Expected a keras\.layers\.Conv3D"):
            Conv3D.from_keras(layer)


def test_stores_are_interchangeable():
    ours, theirs = both()
    store: dict[str, np.ndarray] = {}
    theirs.save_own_variables(store)
    twin = Conv3D(4, 3)
    twin.build(SHAPE)
    twin.load_own_variables(store)
    np.testing.assert_array_equal(twin.get_weights()[0], ours.get_weights()[0])
    back: dict[str, np.ndarray] = {}
    ours.save_own_variables(back)
    theirs.load_own_variables(back)
    np.testing.assert_array_equal(theirs.get_weights()[1], ours.get_weights()[1])


def test_lora():
    theirs = keras.layers.Conv3D(4, 3, lora_rank=2, lora_alpha=3)
    theirs.build(SHAPE)
    theirs.set_weights([sample(weight.shape, seed=i) for i, weight in enumerate(theirs.weights)])
    ours = Conv3D.from_keras(theirs)
    x = sample()
    assert relative_error(ours(x), numpy(theirs(x))) < 1e-5
    assert [weight.name for weight in ours.weights] == [weight.name for weight in theirs.weights]
    assert [w.name for w in ours.trainable_weights] == [w.name for w in theirs.trainable_weights]
