"""The gradients of weights and bias, against differences of the oracle, torch's float64 and the oracle's own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from functional_cases import VIEWS
from gradient_cases import SHAPES, arguments_of, assert_by_differences, convolved, in_torch, operands
from problems import BOUNDS, numpy_dtype, specs
from tvm_conv3d import conv3d_weight_gradient, set_num_threads
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, WEIGHT_GRADIENT, Conv3DSpec, Pads

FORMATS = [CHANNELS_LAST, CHANNELS_FIRST]

#: Windows do not reach the input's end along any axis, and crop its beginning along one.
SPEC = Conv3DSpec(2, (8, 7, 9), 4, 6, (3, 2, 4), (2, 3, 2), (1, 2, 1), (Pads(1, 0), Pads(-1, 1), Pads(0, 2)), groups=2)


def gradients_of(spec: Conv3DSpec, x: Any, gradient: Any, **more: Any) -> tuple[Any, Any]:
    """The public function's results for a forward problem."""
    return conv3d_weight_gradient(x, gradient, spec.kernel, bias=True, **arguments_of(spec), **more)


def check(spec: Conv3DSpec) -> None:
    x, kernel, gradient = operands(spec)
    found, of_bias = gradients_of(spec, x, gradient)
    assert found.shape == spec.kernel_shape and of_bias.shape == (spec.filters,)
    assert found.dtype == of_bias.dtype == numpy_dtype(spec.dtype)
    bound, convolve = BOUNDS[spec.dtype], convolved(spec)
    wanted, wanted_of_bias = oracle.weight_gradient(spec, x, gradient)
    assert oracle.relative_error(found, wanted) < bound
    # values of both signs: relative to what is added up
    assert np.abs(of_bias.astype(np.float64) - wanted_of_bias).max() < bound * np.abs(gradient).astype(np.float64).sum()
    assert_by_differences(lambda at: convolve(x, at), kernel, gradient, found, bound)
    assert_by_differences(
        lambda at: convolve(x, kernel) + channels(spec, at), of_bias.astype(np.float64), gradient, of_bias, bound
    )
    pytest.importorskip("torch")
    _, of_torch, bias_of_torch = in_torch(spec, x, kernel, gradient)
    assert oracle.relative_error(found, of_torch) < bound
    np.testing.assert_allclose(wanted_of_bias, bias_of_torch, rtol=1e-10, atol=1e-9)


def channels(spec: Conv3DSpec, bias: np.ndarray) -> np.ndarray:
    return bias if spec.data_format == CHANNELS_LAST else bias[:, None, None, None]


examples = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@examples
@given(spec=specs())
def test_any_problem(spec: Conv3DSpec) -> None:
    check(spec)


@pytest.mark.deep
@settings(examples, max_examples=150)
@given(spec=specs())
def test_many_problems(spec: Conv3DSpec) -> None:
    check(spec)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("data_format", FORMATS)
def test_kinds_of_layers(name: str, data_format: str) -> None:
    check(replace(SHAPES[name], data_format=data_format))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("data_format", FORMATS)
def test_crops_and_windows_that_end_early(dtype: str, data_format: str) -> None:
    check(replace(SPEC, dtype=dtype, data_format=data_format))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_not_finite_reaches_its_weights_only(value: float, groups: int) -> None:
    spec = Conv3DSpec(1, (6, 7, 8), 16, 32, (3, 3, 3), (1, 2, 1), pads=(Pads(0, 1),) * 3, groups=groups)
    for into in ("x", "gradient"):
        x, _, gradient = operands(spec)
        (x if into == "x" else gradient)[0, 0, 1, 0, 5] = value
        found, of_bias = gradients_of(spec, x, gradient)
        with np.errstate(invalid="ignore"):
            wanted, wanted_of_bias = oracle.weight_gradient(spec, x, gradient)
        finite = np.isfinite(wanted)
        assert 0 < finite.sum() < finite.size
        np.testing.assert_array_equal(found[~finite], wanted[~finite])
        np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(np.isfinite(of_bias), np.isfinite(wanted_of_bias))


@pytest.mark.parametrize(("batch", "size"), [(0, (4, 5, 6)), (1, (4, 0, 6)), (1, (1, 1, 1)), (2, (3, 1, 2))])
@pytest.mark.parametrize("data_format", FORMATS)
def test_sizes_of_zero_and_one(batch: int, size: tuple[int, int, int], data_format: str) -> None:
    spec = Conv3DSpec(batch, size, 3, 4, (3, 3, 3), pads=(Pads(1, 1),) * 3, data_format=data_format)
    x, _, gradient = operands(spec)
    found = gradients_of(spec, x, gradient)
    for one, other in zip(found, oracle.weight_gradient(spec, x, gradient), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_long_sums_are_as_exact_as_short_ones() -> None:
    """Equal products, whose roundings all have one sign."""
    spec = Conv3DSpec(1, (64, 128, 128), 1, 4, (1, 1, 1))
    found, of_bias = gradients_of(spec, np.full(spec.input_shape, 0.1, "f4"), np.full(spec.output_shape, 0.3, "f4"))
    count = 64 * 128 * 128
    np.testing.assert_allclose(found, count * np.float64(np.float32(0.1)) * np.float64(np.float32(0.3)), rtol=2e-5)
    np.testing.assert_allclose(of_bias, count * np.float64(np.float32(0.3)), rtol=2e-5)


def test_results_are_the_same_at_each_call() -> None:
    x, _, gradient = operands(SHAPES["odd"])
    first = gradients_of(SHAPES["odd"], x, gradient)
    for _ in range(3):
        for one, other in zip(first, gradients_of(SHAPES["odd"], x, gradient), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_threads(count: int) -> None:
    set_num_threads(count)
    try:
        check(SHAPES["wide"])
    finally:
        set_num_threads(2)


@pytest.mark.parametrize("name", VIEWS)
def test_any_strides(name: str) -> None:
    spec = SHAPES["grouped"]
    x, _, gradient = operands(spec)
    wanted, _ = oracle.weight_gradient(spec, x, gradient)
    found, _ = gradients_of(spec, VIEWS[name](x), VIEWS[name](gradient))
    assert oracle.relative_error(found, wanted) < BOUNDS["float32"]


def test_torchs_orders_of_memory() -> None:
    torch = pytest.importorskip("torch")
    spec = replace(SHAPES["half"], data_format=CHANNELS_FIRST)
    x, _, gradient = operands(spec)
    wanted, _ = oracle.weight_gradient(spec, x, gradient)
    tensors = [torch.from_numpy(array) for array in (x, gradient)]
    for orders in ((0, 0), (0, 1), (1, 0), (1, 1)):
        formats = [(torch.contiguous_format, torch.channels_last_3d)[order] for order in orders]
        given = [tensor.to(memory_format=order) for tensor, order in zip(tensors, formats, strict=True)]
        found, of_bias = gradients_of(spec, *given)
        assert isinstance(found, torch.Tensor) and isinstance(of_bias, torch.Tensor)
        assert oracle.relative_error(found.numpy(), wanted) < BOUNDS["float32"]


def test_without_bias_there_is_one_result() -> None:
    spec = SHAPES["patches"]
    x, _, gradient = operands(spec)
    found = conv3d_weight_gradient(x, gradient, spec.kernel, **arguments_of(spec))
    np.testing.assert_array_equal(found, gradients_of(spec, x, gradient)[0])


def test_code_is_found_again_by_another_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code is kept under the problem's key, as that of any other."""
    from tvm_conv3d.engine import build
    from tvm_conv3d.runtime import interchange, loader

    spec = replace(SHAPES["patches"], direction=WEIGHT_GRADIENT)
    assert Conv3DSpec.parse(spec.key()) == spec
    x, _, gradient = map(interchange.wrap, operands(SHAPES["patches"]))
    Executor().weight_gradient(spec, x, gradient)
    monkeypatch.setattr(build, "compile_plan", None)
    loader._loaded.clear()
    Executor().weight_gradient(spec, x, gradient)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kernel_size": (3, 2)}, "`kernel_size` must be an integer of at least 1, or three"),
        ({"kernel_size": 0}, "`kernel_size` must be an integer of at least 1, or three"),
        ({"kernel_size": (3, 2, 2)}, r"`gradient` must have the shape .*\(2, 4, 2, 5, 6\)"),
        ({"kernel_size": 20}, "The input is too small"),
        ({"x": np.zeros((2, 9, 5, 10), "f4")}, "`x` must have five axes"),
        ({"gradient": np.zeros((2, 4, 2, 6), "f4")}, "`gradient` must have five axes"),
        ({"gradient": np.zeros((1, 4, 2, 4, 6), "f4")}, "`gradient` must have the shape"),
        ({"groups": 4}, "must be divisible by `groups`. Received: 4 and 6 channels, groups=4"),
        ({"strides": 0}, "`strides` must be an integer of at least 1"),
    ],
)
def test_what_is_refused(more: dict[str, Any], message: str) -> None:
    spec = Conv3DSpec(2, (9, 5, 10), 4, 6, (3, 2, 4), (2, 3, 2), groups=2)
    x, _, gradient = operands(spec)
    call = {"x": x, "gradient": gradient, "kernel_size": spec.kernel, **arguments_of(spec)}
    assert conv3d_weight_gradient(**call).shape == spec.kernel_shape
    with pytest.raises(ValueError, match=re.compile(message)):
        conv3d_weight_gradient(**{**call, **more})
