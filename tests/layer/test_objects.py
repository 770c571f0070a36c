"""Regularizers and constraints, judged by their definitions; Keras is not needed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tvm_conv3d.layer.objects import activations, constraints, regularizers
from tvm_conv3d.support import dtypes

BFLOAT16 = dtypes.numpy_dtype("bfloat16")


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
