"""The activations inside the kernels against independent formulas in float64, in every type."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, data, execute, numpy_dtype, run
from tvm_conv3d import reference
from tvm_conv3d.algorithms import algorithms
from tvm_conv3d.plan import Plan
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, FUSED_ACTIVATIONS, Conv3DSpec, Pads
from tvm_conv3d.targets import cpu_traits, host_target

_erf = np.vectorize(math.erf)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


EXPECTED = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x < 0, 0.2 * x, x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "silu": lambda x: x * np.exp(-np.logaddexp(0, -x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "sigmoid": lambda x: np.exp(-np.logaddexp(0, -x)),
    "log_sigmoid": lambda x: -np.logaddexp(0, -x),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "tanh": np.tanh,
    "tanh_shrink": lambda x: x - np.tanh(x),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "exponential": np.exp,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x < 1, 0.25 * (x + 1) ** 2, x)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "squareplus": lambda x: np.where(x < 0, 2 / (np.sqrt(x * x + 4) - x), (x + np.sqrt(x * x + 4)) / 2),
}

#: A 1x1x1 convolution with weight 1 passes its input to the activation.
IDENTITY = Conv3DSpec(1, (2, 5, 29), 1, 1, (1, 1, 1), bias=False)
#: The same where 24 filters fill and overhang vector registers.
BROAD = replace(IDENTITY, channels=24, filters=24)


#: Layers that all algorithms but one have variants for: dense, and depthwise.
DENSE = Conv3DSpec(1, (5, 8, 19), 8, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)  # type: ignore[arg-type]
KINDS = [DENSE, replace(DENSE, channels=36, filters=36, kernel=(3, 3, 5), groups=36)]


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_bias(activation: str, dtype: str, data_format: str) -> None:
    traits = cpu_traits(host_target(2))
    tried = set()
    for kind in KINDS:
        spec = replace(kind, activation=activation, dtype=dtype, data_format=data_format)
        x, kernel, _ = data(spec)
        expected = EXPECTED[activation](reference.convolve(spec, x, kernel, None))
        for name, algorithm in algorithms("llvm").items():
            for variant in algorithm.variants(spec, traits)[:1]:
                out, trusted = execute(Plan(spec, name, variant, {}), x, kernel, None)
                assert trusted
                assert reference.relative_error(out, expected) < max(BOUNDS[dtype], WINOGRAD_BOUND), name
                tried.add(name)
    planes_or_rows = {"planes"} if data_format == CHANNELS_FIRST else {"depthwise"}
    assert tried == {"direct", "grouped", "winograd", "winograd_rows"} | planes_or_rows


def test_every_fused_activation_is_tested() -> None:
    assert set(EXPECTED) == set(FUSED_ACTIVATIONS)


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_values(name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-9, 9, 200), np.linspace(-2, 2, 89), [0.0]])
    x = x.reshape(IDENTITY.input_shape).astype(numpy_dtype(dtype))
    spec = replace(IDENTITY, activation=name, dtype=dtype)
    result = run(spec, x, np.ones((1, 1, 1, 1, 1), x.dtype), None)
    expected = EXPECTED[name](x.astype(np.float64))
    # sums cancel against tanh and near zero: what counts is the error against the size of the terms
    scale = np.maximum(np.abs(expected), np.minimum(np.abs(x.astype(np.float64)), 1) * 0.1 + 1e-3)
    assert np.max(np.abs(result.astype(np.float64) - expected) / scale) < 30 * BOUNDS[dtype]


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_in_vectors(name: str, data_format: str) -> None:
    spec = replace(BROAD, activation=name, data_format=data_format)
    x = np.random.default_rng(1).uniform(-4, 4, spec.input_shape).astype(np.float32)
    result = run(spec, x, np.eye(24, dtype=np.float32).reshape(1, 1, 1, 24, 24), None)
    np.testing.assert_allclose(result, EXPECTED[name](x.astype(np.float64)), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_not_a_number_stays_one(name: str) -> None:
    x = np.full(IDENTITY.input_shape, np.nan, np.float32)
    result = run(replace(IDENTITY, activation=name), x, np.ones((1, 1, 1, 1, 1), np.float32), None)
    assert np.isnan(result).all()


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_large_values_do_not_overflow_on_the_way(name: str) -> None:
    x = np.zeros(IDENTITY.input_shape, np.float32)
    x.flat[:4] = (-1e4, 1e4, -80.0, 80.0)
    result = run(replace(IDENTITY, activation=name), x, np.ones((1, 1, 1, 1, 1), np.float32), None)
    with np.errstate(over="ignore"):
        expected = EXPECTED[name](x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)
