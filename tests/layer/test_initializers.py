"""Initializers, judged by their definitions; Keras is not needed."""

from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest

from tvm_conv3d.layer.objects import initializers, seeds
from tvm_conv3d.layer.objects.random_initializers import fans
from tvm_conv3d.layer.objects.registry import is_keras
from tvm_conv3d.support import dtypes

KERNEL = (3, 3, 3, 8, 32)
CAMEL = [
    "Zeros",
    "Ones",
    "Constant",
    "Identity",
    "STFT",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "LecunNormal",
    "LecunUniform",
    "Orthogonal",
]
SNAKE = {"STFT": "stft", "GlorotNormal": "glorot_normal", "LecunUniform": "lecun_uniform", "HeNormal": "he_normal"}
ALIASES = {
    "zero": "Zeros",
    "one": "Ones",
    "normal": "RandomNormal",
    "uniform": "RandomUniform",
    "IdentityInitializer": "Identity",
    "OrthogonalInitializer": "Orthogonal",
    "STFTInitializer": "STFT",
    **{snake: camel for camel, snake in SNAKE.items()},
}


@pytest.mark.parametrize("name", CAMEL)
def test_initializer_round_trip(name):
    initializer = initializers.get(name)
    config = initializers.serialize(initializer)
    assert (config["module"], config["class_name"], config["registered_name"]) == ("keras.initializers", name, None)
    again = initializers.get(config)
    assert type(again) is type(initializer)
    assert again.get_config() == initializer.get_config()
    assert type(initializers.get({"class_name": name})) is type(initializer)
    assert type(initializers.get(type(initializer))) is type(initializer)
    assert type(initializer.clone()) is type(initializer)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_initializer_aliases(alias, name):
    assert type(initializers.get(alias)).__name__ == name


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("glorot_uniform", math.sqrt(6 / (27 * (8 + 32)))),
        ("he_uniform", math.sqrt(6 / (27 * 8))),
        ("lecun_uniform", math.sqrt(3 / (27 * 8))),
        ("random_uniform", 0.05),
    ],
)
def test_uniform_initializers(name, bound):
    values = initializers.get({"class_name": name, "config": {"seed": 1}})(KERNEL)
    assert values.dtype == np.float32
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > 0.99 * bound
    np.testing.assert_allclose(values.astype(np.float64).std(), bound / math.sqrt(3), rtol=0.03)
    assert abs(values.mean()) < 0.02 * bound


@pytest.mark.parametrize(
    ("name", "stddev"),
    [
        ("glorot_normal", math.sqrt(2 / (27 * (8 + 32)))),
        ("he_normal", math.sqrt(2 / (27 * 8))),
        ("lecun_normal", math.sqrt(1 / (27 * 8))),
    ],
)
def test_truncated_initializers(name, stddev):
    values = initializers.get({"class_name": name, "config": {"seed": 1}})(KERNEL)
    np.testing.assert_allclose(values.astype(np.float64).std(), stddev, rtol=0.03)
    cut = 2 * stddev / 0.87962566103423978
    assert 0.98 * cut < np.abs(values).max() <= cut * (1 + 1e-6)


def test_normal_initializers():
    normal = initializers.RandomNormal(mean=1.0, stddev=2.0, seed=3)(KERNEL, "float64")
    assert normal.dtype == np.float64
    np.testing.assert_allclose([normal.mean(), normal.std()], [1, 2], rtol=0.05)
    assert np.abs(normal - 1).max() > 4.1
    truncated = initializers.TruncatedNormal(mean=1.0, stddev=2.0, seed=3)(KERNEL)
    assert np.abs(truncated - 1).max() <= 4.0 + 1e-5
    scaled = initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=3)(KERNEL)
    np.testing.assert_allclose(scaled.std(), math.sqrt(2 / (27 * 32)), rtol=0.05)
    assert initializers.VarianceScaling(distribution="NORMAL").distribution == "truncated_normal"


def test_fans():
    assert fans(KERNEL) == (27 * 8, 27 * 32)
    assert fans((5,)) == (5, 5)
    assert fans((4, 6)) == (4, 6)
    assert fans(()) == (1, 1)
    assert fans(KERNEL, input_axes=[3], output_axes=[4]) == (8, 32)


def test_seeds():
    seeded = initializers.HeNormal(seed=7)
    np.testing.assert_array_equal(seeded(KERNEL), initializers.HeNormal(seed=7)(KERNEL))
    np.testing.assert_array_equal(seeded(KERNEL), seeded(KERNEL))
    unseeded = initializers.HeNormal()
    np.testing.assert_array_equal(unseeded(KERNEL), unseeded(KERNEL))
    assert np.abs(unseeded(KERNEL) - initializers.HeNormal()(KERNEL)).max() > 0
    assert unseeded.get_config()["seed"] is None
    assert initializers.HeNormal(seed=-7)((2, 2)).shape == (2, 2)
    for wrong in (2.5, "a", np.int64(2)):
        with pytest.raises(ValueError, match="`seed` argument should be an instance of"):
            initializers.HeNormal(seed=wrong)


def test_seed_generator_draws_anew_and_survives_config_and_pickle():
    initializer = initializers.RandomUniform(seed=seeds.SeedGenerator(5))
    first, second = initializer((4,)), initializer((4,))
    assert np.abs(first - second).max() > 0
    again = initializers.get(initializers.serialize(initializer))
    np.testing.assert_array_equal(again((4,)), first)
    copied = pickle.loads(pickle.dumps(initializer))
    np.testing.assert_array_equal(copied((4,)), initializer((4,)))


def test_python_seed_makes_unseeded_initializers_repeatable():
    random.seed(11)
    first = initializers.GlorotUniform()((4, 4))
    random.seed(11)
    np.testing.assert_array_equal(initializers.GlorotUniform()((4, 4)), first)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["zeros", "ones", "constant", "glorot_uniform", "he_normal", "orthogonal"])
def test_initializer_dtypes(name, dtype):
    assert initializers.get(name)((3, 4), dtype=dtype).dtype == dtypes.numpy_dtype(dtype)


def test_constant_initializers():
    np.testing.assert_array_equal(initializers.get("zeros")((2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(initializers.get("ones")((2, 3)), np.ones((2, 3)))
    np.testing.assert_array_equal(initializers.Constant(2.5)((2, 3)), np.full((2, 3), 2.5))
    per_filter = initializers.get(initializers.serialize(initializers.Constant(np.array([1.0, 2.0]))))
    np.testing.assert_array_equal(per_filter((3, 2)), [[1, 2]] * 3)
    np.testing.assert_array_equal(initializers.Identity(2.0)((2, 3)), 2 * np.eye(2, 3))


@pytest.mark.parametrize("shape", [(3, 3, 3, 8, 32), (2, 2, 2, 2, 64), (3, 4)])
def test_orthogonal(shape):
    values = initializers.Orthogonal(gain=2.0, seed=1)(shape, "float64")
    matrix = values.reshape(-1, shape[-1])
    product = matrix.T @ matrix if len(matrix) >= shape[-1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_orthogonal_is_uniform_in_sign():
    positive = sum(initializers.Orthogonal(seed=seed)((2, 2))[0, 0] > 0 for seed in range(100))
    assert 30 < positive < 70


@pytest.mark.parametrize(
    ("initializer", "shape", "message"),
    [
        ("identity", KERNEL, "Identity matrix initializer can only be used for 2D matrices."),
        ("stft", KERNEL, "STFT initializer can only be used for kernels of a 1-D convolution."),
        ("orthogonal", (3,), "The tensor to initialize must be at least two-dimensional."),
        (np.ones((2, 2)), (2, 3), "Expected `shape` to be (2, 2) for direct tensor as initializer."),
        ("zeros", (2,), None),
    ],
)
def test_initializers_refuse_shapes(initializer, shape, message):
    if message is None:
        assert initializers.get(initializer)(shape).shape == shape
        return
    with pytest.raises(ValueError) as caught:
        initializers.get(initializer)(shape)
    assert str(caught.value).startswith(message)


def test_initializer_base_class_is_abstract():
    with pytest.raises(NotImplementedError, match="must implement the `__call__"):
        initializers.get("Initializer")((2,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_array_initializers_round_trip(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtypes.numpy_dtype(dtype))
    again = initializers.get(initializers.serialize(initializers.get(value)))
    np.testing.assert_array_equal(again((2, 3), dtype="float64"), value.astype(np.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1}, "Argument `scale` must be positive float. Received: scale=-1"),
        ({"mode": "x"}, "Invalid `mode` argument: x."),
        ({"distribution": "x"}, "Invalid `distribution` argument: x."),
    ],
)
def test_variance_scaling_arguments(arguments, message):
    with pytest.raises(ValueError) as caught:
        initializers.VarianceScaling(**arguments)
    assert str(caught.value).startswith(message)


def test_stft_arguments():
    with pytest.raises(ValueError, match="side should be"):
        initializers.STFT(side="left")
    with pytest.raises(ValueError, match="Scaling is invalid"):
        initializers.STFT(scaling="x")


@pytest.mark.parametrize(
    ("identifier", "error", "message"),
    [
        ("Glorot_uniform", ValueError, "Could not interpret initializer identifier: Glorot_uniform"),
        ([1, 2], ValueError, "Could not interpret initializer identifier: [1, 2]"),
        ({}, ValueError, "Unknown `config` as a `dict`, config={}"),
        ({"class_name": "Nope", "config": {}}, ValueError, "Could not interpret initializer identifier: {'class"),
        ({"class_name": "HeNormal", "config": {"bogus": 3}}, TypeError, "<class "),
        ({"module": None, "class_name": "HeNormal", "config": {}}, TypeError, "Cannot deserialize object of type"),
        ({"module": "mine", "class_name": "HeNormal", "config": {}}, ValueError, "Could not interpret initializer"),
        ({"class_name": "__lambda__", "config": {"value": "code"}}, ValueError, "A stored lambda is code"),
    ],
)
def test_identifiers_that_mean_nothing(identifier, error, message):
    with pytest.raises(error) as caught:
        initializers.get(identifier)
    assert str(caught.value).startswith(message)


class Mine(initializers.Initializer):
    """An initializer of the user's own, which no module of ours knows."""

    def __call__(self, shape, dtype=None):
        return np.full(tuple(shape), 3.0)


def test_custom_classes_are_found_where_the_caller_says():
    config = initializers.serialize(Mine())
    assert config == {"module": __name__, "class_name": "Mine", "config": {}, "registered_name": "Mine"}
    with pytest.raises(ValueError, match="Could not interpret"):
        initializers.get(config)
    assert isinstance(initializers.get(config, {"Mine": Mine}), Mine)
    assert isinstance(initializers.get("Mine", {"Mine": Mine}), Mine)
    assert isinstance(initializers.get(Mine), Mine)
    assert not is_keras(Mine())
