"""Activations, judged by their definitions; Keras is not needed."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from tvm_conv3d.layer.objects import activations, special
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
