"""The gradient of weights from that of maxima, against the float64 oracle's from the whole one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_conv3d.functional import stem_gradient, training
from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Triple

#: Input, kernel and window: rests of windows along each axis, several functions, kernels and windows of all shapes.
CASES: list[tuple[tuple[int, ...], tuple[int, ...], Triple]] = [
    ((2, 9, 12, 11, 1), (3, 3, 3, 1, 64), (2, 2, 2)),
    ((1, 7, 10, 9, 3), (3, 3, 3, 3, 16), (2, 2, 2)),
    ((3, 5, 9, 14, 2), (2, 3, 4, 2, 32), (1, 3, 2)),
    ((1, 4, 4, 6, 1), (1, 1, 1, 1, 16), (4, 4, 4)),
]


def operands(x: tuple[int, ...], kernel: tuple[int, ...], window: Triple) -> tuple[Any, ...]:
    """Input, the gradient of maxima, and their cells, of the results of a convolution of normal numbers."""
    generator = np.random.default_rng(3)
    result = (x[0], *(n - k + 1 for n, k in zip(x[1:4], kernel[:3], strict=True)), kernel[-1])
    y = generator.standard_normal(result).astype(np.float32)
    maxima, cells = training.max_pool(y, window)
    gradient = generator.standard_normal(maxima.shape).astype(np.float32)
    return generator.standard_normal(x).astype(np.float32), gradient, cells, y.shape[1:4]


@pytest.mark.parametrize(("shape", "kernel", "window"), CASES)
def test_gradients_of_weights_and_bias(shape: tuple[int, ...], kernel: tuple[int, ...], window: Triple) -> None:
    assert stem_gradient.takes(ConvArguments(), kernel, "float32")
    x, gradient, cells, size = operands(shape, kernel, window)
    found, of_bias = stem_gradient.weight_gradient(x, gradient, cells, kernel, window)
    whole = training.max_pool_gradient(gradient, cells, size, window)
    batch, depth, height, width, channels = shape
    spec = Conv3DSpec(batch, (depth, height, width), channels, kernel[-1], (kernel[0], kernel[1], kernel[2]))
    wanted, wanted_of_bias = oracle.weight_gradient(spec, x, whole)
    assert found.dtype == of_bias.dtype == np.float32 and found.shape == kernel
    assert oracle.relative_error(found, wanted) < 1e-6
    assert oracle.relative_error(of_bias, wanted_of_bias) < 1e-6


def test_results_are_the_same_at_each_call_and_of_any_memory_order() -> None:
    shape, kernel, window = CASES[0]
    x, gradient, cells, _ = operands(shape, kernel, window)
    once = stem_gradient.weight_gradient(x, gradient, cells, kernel, window)
    given = (np.asfortranarray(each) for each in (x, gradient, cells))
    for found, wanted in zip(stem_gradient.weight_gradient(*given, kernel, window), once, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_infinity_in_the_input_reaches_the_taps_that_read_it() -> None:
    shape, kernel, window = CASES[0]
    x, gradient, cells, _ = operands(shape, kernel, window)
    x[0, 0, 0, 0] = np.inf
    found, of_bias = stem_gradient.weight_gradient(x, gradient, cells, kernel, window)
    reached = np.zeros((3, 3, 3), bool)
    reached[0, 0, 0] = True
    np.testing.assert_array_equal(~np.isfinite(found[..., 0, :]), np.broadcast_to(reached[..., None], (3, 3, 3, 64)))
    assert np.isfinite(of_bias).all()


@pytest.mark.parametrize("x", [(0, 5, 5, 5, 1), (2, 3, 3, 3, 1)])
def test_without_windows_sums_are_empty(x: tuple[int, ...]) -> None:
    pooled = training.pooled((x[0], x[1] - 2, x[2] - 2, x[3] - 2, 16), (2, 2, 2))
    of_kernel, of_bias = stem_gradient.weight_gradient(
        np.ones(x, np.float32), np.ones(pooled, np.float32), np.ones(pooled, np.uint8), (3, 3, 3, 1, 16), (2, 2, 2)
    )
    np.testing.assert_array_equal(of_kernel, np.zeros((3, 3, 3, 1, 16)))
    np.testing.assert_array_equal(of_bias, np.zeros(16))


@pytest.mark.parametrize(
    ("arguments", "kernel", "dtype"),
    [
        (ConvArguments(strides=(1, 2, 1)), (3, 3, 3, 1, 64), "float32"),
        (ConvArguments(dilation=(2, 1, 1)), (3, 3, 3, 1, 64), "float32"),
        (ConvArguments(padding="same"), (3, 3, 3, 1, 64), "float32"),
        (ConvArguments(groups=2), (3, 3, 3, 1, 64), "float32"),
        (ConvArguments(data_format=CHANNELS_FIRST), (3, 3, 3, 1, 64), "float32"),
        (ConvArguments(), (3, 3, 3, 1, 64), "float64"),
        (ConvArguments(), (3, 3, 3, 1, 17), "float32"),
        (ConvArguments(), (3, 3, 3, 64, 64), "float32"),
    ],
)
def test_what_it_does_not_take(arguments: ConvArguments, kernel: tuple[int, ...], dtype: str) -> None:
    assert not stem_gradient.takes(arguments, kernel, dtype)
