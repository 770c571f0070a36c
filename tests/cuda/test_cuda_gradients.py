"""Gradients of convolutions on GPUs: of the input in any order of threads, and of input and weights of arrays there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda_checks import assert_right, default_plans
from cuda_fakes import FakeDriver, GpuArray, fake_gpu
from cuda_on_cpu.execute import Order
from gradient_cases import arguments_of, operands
from problems import BOUNDS
from tvm_conv3d import conv3d_data_gradient, conv3d_weight_gradient
from tvm_conv3d.functional import convolution, gradients
from tvm_conv3d.functional.gradient_arguments import data_gradient_of
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import kept_weights
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.support.lru import Recent

#: A dilated one, one in groups whose strides and pads differ, and one whose windows leave cells unread.
FORWARD = (
    Conv3DSpec(1, (5, 6, 7), 8, 16, (3, 2, 3), dilation=(1, 2, 1), pads=(Pads(1, 1), Pads(0, 2), Pads(2, 0))),
    Conv3DSpec(2, (6, 5, 8), 8, 12, (3, 2, 4), (2, 1, 3), (1, 2, 1), (Pads(1, 0), Pads(-1, 1), Pads(0, 2)), groups=2),
    Conv3DSpec(1, (7, 5, 6), 16, 8, (1, 2, 1), (3, 2, 2)),
)

#: Of the types that the orders are tried with.
FORMATS = (CHANNELS_FIRST, CHANNELS_LAST, CHANNELS_FIRST)


@pytest.mark.parametrize("order", ["reverse", ("shuffled", 7)], ids=str)
def test_any_order_of_threads(order: Order) -> None:
    of_inputs = [data_gradient_of(replace(spec, bias=False)) for spec in FORWARD]
    specs = [
        replace(spec, dtype=dtype, data_format=data_format)
        for spec in of_inputs
        for dtype, data_format in (
            ("float32", CHANNELS_FIRST),
            ("float16", CHANNELS_LAST),
            ("bfloat16", CHANNELS_FIRST),
        )
    ]
    assert_right(default_plans(specs), order=order)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_arrays_on_a_gpu(data_format: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result lies beside the gradient that it is computed from."""
    # what calls keep lies in the memory of another test's GPU
    monkeypatch.setattr(kept_weights, "STORE", kept_weights.Store())
    monkeypatch.setattr(convolution, "_calls", Recent(8))
    with fake_gpu(monkeypatch) as gpu:
        for forward in FORWARD:
            spec = replace(forward, dtype=dtype, data_format=data_format, bias=False)
            _, kernel, gradient = operands(spec)
            found = conv3d_data_gradient(GpuArray(gpu, gradient), kernel, spec.size, **arguments_of(spec))
            assert isinstance(found, GpuArray) and found.shape == spec.input_shape and found.dtype == dtype
            expected = oracle.convolve(data_gradient_of(spec), gradient, kernel)
            assert oracle.relative_error(found.array, expected) < BOUNDS[dtype]
        assert gpu.launched


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """A GPU with a memory of its own, and calls that know of no other."""
    monkeypatch.setattr(gradients, "_calls", Recent(8))
    with fake_gpu(monkeypatch) as fake:
        yield fake


def weight_gradients(spec: Conv3DSpec, x: Any, gradient: Any, **more: Any) -> Any:
    return conv3d_weight_gradient(x, gradient, spec.kernel, bias=True, **arguments_of(spec), **more)


def assert_weight_gradients_right(spec: Conv3DSpec, found: Any, x: np.ndarray, gradient: np.ndarray) -> None:
    for one, wanted in zip(found, oracle.weight_gradient(spec, x, gradient), strict=True):
        assert one.dtype == spec.dtype
        assert oracle.relative_error(one, wanted) < BOUNDS[spec.dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_gradients_of_weights_of_arrays_on_a_gpu(data_format: str, dtype: str, gpu: FakeDriver) -> None:
    """The results lie beside the input; NumPy's arrays are copied there, and the results back."""
    spec = replace(FORWARD[0], dtype=dtype, data_format=data_format)
    x, _, gradient = operands(spec)
    found = weight_gradients(spec, GpuArray(gpu, x), GpuArray(gpu, gradient))
    assert all(isinstance(each, GpuArray) for each in found)
    assert_weight_gradients_right(spec, [each.array for each in found], x, gradient)
    launched = len(gpu.launched)
    assert_weight_gradients_right(spec, weight_gradients(spec, x, gradient, target="cuda"), x, gradient)
    assert len(gpu.launched) == 2 * launched > 0


def test_gradients_of_weights_of_other_types_and_orders(gpu: FakeDriver) -> None:
    """What is no dense array of one type is made one by its library; channels that lie inside are read so."""
    spec = replace(FORWARD[2], data_format=CHANNELS_FIRST)
    x, _, gradient = operands(spec)
    inside = [np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (x, gradient.astype("float64"))]
    given = [GpuArray(gpu, array).transpose((0, 4, 1, 2, 3)) for array in inside]
    found = weight_gradients(spec, *given)
    assert_weight_gradients_right(spec, [each.array for each in found], x, gradient)


def test_gradients_of_weights_where_there_are_no_positions(gpu: FakeDriver) -> None:
    spec = replace(FORWARD[2], batch=0)
    x, _, gradient = operands(spec)
    for given in ((GpuArray(gpu, x), GpuArray(gpu, gradient)), (x, gradient)):
        found = weight_gradients(spec, *given, target="cuda")
        assert isinstance(found[0], type(given[0]))
        assert [each.shape for each in found] == [spec.kernel_shape, (spec.filters,)]
        for each in found:
            assert not np.asarray(getattr(each, "array", each)).any()
    assert not gpu.launched


def test_operands_in_different_places_are_refused_in_words(gpu: FakeDriver) -> None:
    spec = FORWARD[0]
    x, _, gradient = operands(spec)
    for given, words in (
        ((GpuArray(gpu, x), gradient), "x in GPU 0, of cupy, gradient in the CPU's memory"),
        ((x, GpuArray(gpu, gradient)), "x in the CPU's memory, gradient in GPU 0, of cupy"),
    ):
        with pytest.raises(ValueError, match=words):
            weight_gradients(spec, *given)
    with pytest.raises(ValueError, match="The target is a CPU, and the input lies on GPU 0"):
        weight_gradients(spec, GpuArray(gpu, x), GpuArray(gpu, gradient), target="llvm")
    assert not gpu.launched
