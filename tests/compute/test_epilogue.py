"""The activations inside the kernels against independent formulas in float64, in every type."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, data, execute, numpy_dtype, run
from sampling import sampled
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS, PARAMETERS, PostOp
from tvm_conv3d.target.cpu import cpu_traits, host_target

#: Every activation, and those with parameters with other ones, too.
STEPS = (
    *FUSED_ACTIVATIONS,
    "leaky_relu:0.01",
    "leaky_relu:-0.5",
    "elu:0.5",
    "celu:2",
    "celu:0.25",
    "gelu:tanh",
    "hard_tanh:-2:0.5",
    "hard_tanh:0:3",
    "hard_shrink:0",
    "hard_shrink:1.5",
    "soft_shrink:0.125",
    "softplus:2",
    "softplus:0.5",
    "squareplus:1",
)

FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)

#: A 1x1x1 convolution with weight 1 passes its input to the activation.
IDENTITY = Conv3DSpec(1, (2, 5, 29), 1, 1, (1, 1, 1), bias=False)
#: The same where 24 filters fill and overhang vector registers.
BROAD = replace(IDENTITY, channels=24, filters=24)


#: Layers that all algorithms but one have variants for: dense, and depthwise.
DENSE = Conv3DSpec(1, (5, 8, 19), 8, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)  # type: ignore[arg-type]
KINDS = [DENSE, replace(DENSE, channels=36, filters=36, kernel=(3, 3, 5), groups=36)]


@pytest.mark.parametrize(
    ("activation", "dtype", "data_format"),
    sampled(itertools.product(("relu", "elu"), ("float32", "bfloat16"), FORMATS), 3),
)
def test_without_a_bias(activation: str, dtype: str, data_format: str) -> None:
    traits = cpu_traits(host_target(2))
    tried = set()
    for kind in KINDS:
        spec = replace(kind, post_ops=(activation,), dtype=dtype, data_format=data_format)
        x, kernel, _ = data(spec)
        expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, None))
        for name, algorithm in algorithms("llvm").items():
            for variant in algorithm.variants(spec, traits)[:1]:
                out, trusted = execute(Plan(spec, name, variant, {}), x, kernel, None)
                assert trusted
                assert oracle.relative_error(out, expected) < max(BOUNDS[dtype], WINOGRAD_BOUND), name
                tried.add(name)
    planes_or_rows = {"planes"} if data_format == CHANNELS_FIRST else {"depthwise"}
    assert tried == {"direct", "grouped", "winograd", "winograd_rows"} | planes_or_rows


def test_all_parameters_are_tested() -> None:
    tried = {PostOp.parse(step).name for step in STEPS if ":" in step}
    assert tried == set(PARAMETERS)


@pytest.mark.parametrize("post_ops", [("relu", "leaky_relu:0.1", "hard_tanh:-1:0.75"), ("tanh", "softplus:3", "elu")])
def test_chains(post_ops: tuple[str, ...]) -> None:
    spec = replace(BROAD, post_ops=post_ops)
    x = np.random.default_rng(1).uniform(-4, 4, spec.input_shape).astype(np.float32)
    result = run(spec, x, np.eye(24, dtype=np.float32).reshape(1, 1, 1, 24, 24), None)
    np.testing.assert_allclose(result, oracle.finish(spec, x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "dtype"), sampled(itertools.product(STEPS, ("float32", "float64", "float16", "bfloat16")), 3)
)
def test_values(name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-9, 9, 200), np.linspace(-2, 2, 89), [0.0]])
    x = x.reshape(IDENTITY.input_shape).astype(numpy_dtype(dtype))
    spec = replace(IDENTITY, post_ops=(name,), dtype=dtype)
    result = run(spec, x, np.ones((1, 1, 1, 1, 1), x.dtype), None)
    expected = oracle.finish(spec, x)
    # sums cancel against tanh and near zero: what counts is the error against the size of the terms
    scale = np.maximum(np.abs(expected), np.minimum(np.abs(x.astype(np.float64)), 1) * 0.1 + 1e-3)
    assert np.max(np.abs(result.astype(np.float64) - expected) / scale) < 30 * BOUNDS[dtype]


@pytest.mark.parametrize(("name", "data_format"), sampled(itertools.product(STEPS, FORMATS), 3))
def test_in_vectors(name: str, data_format: str) -> None:
    spec = replace(BROAD, post_ops=(name,), data_format=data_format)
    x = np.random.default_rng(1).uniform(-4, 4, spec.input_shape).astype(np.float32)
    result = run(spec, x, np.eye(24, dtype=np.float32).reshape(1, 1, 1, 24, 24), None)
    np.testing.assert_allclose(result, oracle.finish(spec, x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", STEPS)
def test_not_a_number_stays_one(name: str) -> None:
    x = np.full(IDENTITY.input_shape, np.nan, np.float32)
    result = run(replace(IDENTITY, post_ops=(name,)), x, np.ones((1, 1, 1, 1, 1), np.float32), None)
    assert np.isnan(result).all()


@pytest.mark.parametrize("name", STEPS)
def test_large_values_do_not_overflow_on_the_way(name: str) -> None:
    x = np.zeros(IDENTITY.input_shape, np.float32)
    x.flat[:4] = (-1e4, 1e4, -80.0, 80.0)
    spec = replace(IDENTITY, post_ops=(name,))
    result = run(spec, x, np.ones((1, 1, 1, 1, 1), np.float32), None)
    with np.errstate(over="ignore"):
        expected = oracle.finish(spec, x).astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)
