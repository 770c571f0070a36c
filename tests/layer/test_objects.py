"""Activations, initializers, regularizers and constraints, judged by their definitions; Keras is not needed."""

from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest

from tvm_conv3d.layer.objects import activations, constraints, initializers, regularizers, seeds, special
from tvm_conv3d.layer.objects.random_initializers import fans
from tvm_conv3d.layer.objects.registry import is_keras
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS
from tvm_conv3d.support import dtypes

BFLOAT16 = dtypes.numpy_dtype("bfloat16")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


#: Every elementwise activation, from its definition on one Python float.
DEFINITIONS = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x: x if x > 0 else 0.2 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "celu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * math.tanh(softplus(x)),
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "hard_sigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hard_silu": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hard_tanh": lambda x: min(max(x, -1), 1),
    "hard_shrink": lambda x: x if abs(x) > 0.5 else 0,
    "soft_shrink": lambda x: x - 0.5 if x > 0.5 else x + 0.5 if x < -0.5 else 0,
    "tanh": math.tanh,
    "tanh_shrink": lambda x: x - math.tanh(x),
    "softplus": softplus,
    "softsign": lambda x: x / (abs(x) + 1),
    "exponential": math.exp,
    "sparse_plus": lambda x: 0 if x <= -1 else x if x >= 1 else (x + 1) ** 2 / 4,
    "sparse_sigmoid": lambda x: min(max((x + 1) / 2, 0), 1),
    "squareplus": lambda x: (x + math.sqrt(x * x + 4)) / 2 if x > 0 else 2 / (math.sqrt(x * x + 4) - x),
}
POINTS = np.concatenate([np.linspace(-12, 12, 97), [-300.0, -40.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, -3.0, 6.0, 40.0]])


def test_every_fused_activation_is_defined_here():
    assert set(DEFINITIONS) == set(FUSED_ACTIVATIONS)


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_activation_values(name):
    expected = np.array([DEFINITIONS[name](float(x)) for x in POINTS])
    np.testing.assert_allclose(activations.get(name)(POINTS), expected, rtol=2e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
@pytest.mark.parametrize("name", [*FUSED_ACTIVATIONS, "softmax", "log_softmax", "sparsemax", "glu"])
def test_activations_keep_dtype_and_shape(name, dtype):
    x = np.linspace(-4, 4, 24).reshape(4, 6).astype(dtype)
    y = activations.get(name)(x)
    assert y.dtype == dtype
    assert y.shape == ((4, 3) if name == "glu" else (4, 6))
    wide = activations.get(name)(x.astype(np.float64))
    np.testing.assert_allclose(y.astype(np.float64), wide, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_activations_at_the_extremes(name):
    y = activations.get(name)(np.array([np.nan, 1e30, -1e30, 3e38, -3e38], np.float32))
    assert np.isnan(y[0])
    assert not np.isnan(y[1:]).any()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax", "glu"])
def test_activations_of_nothing(name):
    x = np.zeros((2, 0), np.float32)
    assert activations.get(name)(x).shape == (2, 0)


def test_softmax_is_stable_and_sums_to_one():
    x = np.array([[1000.0, 1001.0], [-1000.0, -1001.0]], np.float32)
    np.testing.assert_allclose(activations.softmax(x).sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(activations.softmax(x)[0, 1], sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(activations.log_softmax(x)[0, 1], math.log(sigmoid(1.0)), rtol=1e-4)


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    x = np.random.default_rng(0).normal(size=(50, 7)) * 2
    p = activations.sparsemax(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-12)
    assert (p >= 0).all()
    # Optimality: x - p is largest, and equal, where p is positive.
    slack = x - p
    tau = slack.max(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.where(p > 0, slack - tau, 0), 0, atol=1e-12)
    assert ((p == 0).any(axis=-1)).any()


def test_sparsemax_by_hand_and_on_another_axis():
    x = np.array([3.0, 2.5, 0.0])
    np.testing.assert_allclose(activations.sparsemax(x), [0.75, 0.25, 0.0])
    np.testing.assert_allclose(activations.sparsemax(x[:, None], axis=0)[:, 0], [0.75, 0.25, 0.0])
    assert np.isnan(activations.sparsemax(np.full(3, np.nan))).all()


def test_glu_halves_the_last_axis():
    x = np.array([[1.0, 2.0, 0.0, 3.0]])
    np.testing.assert_allclose(activations.glu(x), [[0.5, 2 * sigmoid(3.0)]])
    with pytest.raises(ValueError, match="must be even"):
        activations.glu(x[:, :3])


def test_activation_parameters():
    x = np.array([-2.0, 0.5, 9.0])
    np.testing.assert_allclose(activations.relu(x, negative_slope=0.5, max_value=6), [-1.0, 0.5, 6.0])
    np.testing.assert_allclose(activations.relu(x, threshold=1.0), [0.0, 0.0, 9.0])
    np.testing.assert_allclose(activations.leaky_relu(x, negative_slope=0.1), [-0.2, 0.5, 9.0])
    np.testing.assert_allclose(activations.threshold(x, 0.6, 7.0), [7.0, 7.0, 9.0])
    np.testing.assert_allclose(activations.gelu(x, approximate=True), activations.gelu(x), atol=1e-3)
    with pytest.raises(TypeError, match="default_value"):
        activations.get("threshold")(x)


def test_error_function_against_the_standard_library():
    x = np.concatenate([np.linspace(-30, 30, 6001), [0.46875, -0.46875, 4.0, -4.0, 1e-300, 0.0, np.inf, -np.inf]])
    erf = np.array([math.erf(v) for v in x])
    erfc = np.array([math.erfc(v) for v in x])
    np.testing.assert_allclose(special.erf(x), erf, rtol=4e-16, atol=0)
    np.testing.assert_allclose(special.erfc(x), erfc, rtol=2e-15, atol=5e-324)
    assert np.isnan(special.erf(np.array([np.nan]))).all()


# Activations by identifier


@pytest.mark.parametrize(("alias", "name"), [("swish", "silu"), ("hard_swish", "hard_silu"), (None, "linear")])
def test_activation_aliases(alias, name):
    function = activations.get(alias)
    assert activations.serialize(function) == name
    assert activations.split(function) == (name, None, False)


def test_split_leaves_what_kernels_do_not_compute():
    assert activations.split(activations.softmax) == ("linear", activations.softmax, True)
    assert activations.split(None) == ("linear", None, False)

    def relu(x):
        return x

    # A namesake is not the built-in.
    assert activations.split(relu) == ("linear", relu, False)
    assert activations.split(np.tanh) == ("linear", np.tanh, False)


@pytest.mark.parametrize("identifier", ["ReLU", 3, {"class_name": "nope", "config": {}}])
def test_unknown_activations(identifier):
    with pytest.raises(ValueError, match="Could not interpret activation function identifier"):
        activations.get(identifier)


@pytest.mark.parametrize(
    "config",
    [
        {"module": "keras.activations", "class_name": "function", "config": "relu", "registered_name": "relu"},
        {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"},
        {"class_name": "relu", "config": {}},
    ],
)
def test_activation_configs(config):
    assert activations.get(config) is activations.relu


def test_functions_pickle():
    assert pickle.loads(pickle.dumps(activations.gelu)) is activations.gelu


# Initializers

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


# Regularizers

X = np.array([[1.0, -2.0], [3.0, -4.0]], np.float32)


@pytest.mark.parametrize(
    ("identifier", "penalty"),
    [
        ("l1", 0.1),
        ("L1", 0.1),
        ("l2", 0.3),
        ("l1_l2", 0.4),
        ("l1l2", 0.0),
        (regularizers.L1, 0.1),
        (regularizers.L1(0.5), 5.0),
        (regularizers.L1(None), 0.1),
        (regularizers.L1L2(None, None), 0.0),
        ({"class_name": "L2", "config": {"l2": 0.5}}, 15.0),
        ({"class_name": "l1", "config": {"l1": 0.5}}, 5.0),
        (regularizers.OrthogonalRegularizer(), 0.01 * 11 / math.sqrt(5 * 25)),
        (regularizers.OrthogonalRegularizer(1.0, "columns"), 14 / math.sqrt(10 * 20)),
        ("regularizer", 0.0),
    ],
)
def test_regularizers(identifier, penalty):
    result = regularizers.get(identifier)(X)
    assert float(result) == pytest.approx(penalty, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64])
@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2", "orthogonal_regularizer"])
def test_regularizers_keep_the_dtype(name, dtype):
    assert regularizers.get(name)(X.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2", "OrthogonalRegularizer"])
def test_regularizer_round_trip(name):
    regularizer = regularizers.get(name)
    config = regularizers.serialize(regularizer)
    assert (config["module"], config["class_name"]) == ("keras.regularizers", name)
    assert regularizers.get(config).get_config() == regularizer.get_config()


def test_regularizer_arguments():
    for wrong in (-1, math.inf, math.nan, "a", np.float32(1)):
        with pytest.raises(ValueError, match=r"Invalid value for argument l1: expected a non-negative float\.Received"):
            regularizers.L1(wrong)
    with pytest.raises(ValueError, match="Invalid value for argument `mode`"):
        regularizers.OrthogonalRegularizer(mode="x")
    with pytest.raises(ValueError, match="must have rank 2"):
        regularizers.OrthogonalRegularizer()(X[None])
    with pytest.raises(NotImplementedError, match="does not implement get_config"):
        regularizers.serialize(regularizers.Regularizer())


# Constraints


def test_constraints():
    np.testing.assert_array_equal(constraints.NonNeg()(X), np.maximum(X, 0))
    norms = np.linalg.norm(X, axis=0)
    np.testing.assert_allclose(constraints.UnitNorm()(X), X / norms, rtol=1e-5)
    np.testing.assert_allclose(constraints.MaxNorm(3.5)(X), X * np.minimum(norms, 3.5) / norms, rtol=1e-5)
    np.testing.assert_allclose(
        constraints.MinMaxNorm(5, 9, rate=0.5)(X), X * (0.5 * np.clip(norms, 5, 9) + 0.5 * norms) / norms, rtol=1e-5
    )
    np.testing.assert_array_equal(constraints.Constraint()(X), X)
    kernel = np.random.default_rng(0).normal(size=(2, 2, 2, 3, 4)).astype(np.float32)
    unit = constraints.UnitNorm(axis=[0, 1, 2, 3])(kernel)
    np.testing.assert_allclose(np.linalg.norm(unit.reshape(-1, 4), axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64])
@pytest.mark.parametrize("name", ["max_norm", "non_neg", "unit_norm", "min_max_norm"])
def test_constraints_keep_the_dtype(name, dtype):
    assert constraints.get(name)(X.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm", "Constraint"])
def test_constraint_round_trip(name):
    constraint = constraints.get(name)
    config = constraints.serialize(constraint)
    assert (config["module"], config["class_name"]) == ("keras.constraints", name)
    assert constraints.get(config).get_config() == constraint.get_config()


def test_callables_serialize_by_name():
    def double(x):
        return 2 * x

    config = {"module": "builtins", "class_name": "function", "config": "double", "registered_name": "function"}
    assert activations.serialize(double) == config
    assert activations.get(config, {"double": double}) is double
    assert regularizers.serialize(double) == config
    assert constraints.serialize(None) is None
    with pytest.raises(TypeError, match="Cannot serialize object"):
        constraints.serialize(object())
