"""The gradient of a convolution's input, against differences of the oracle, torch's float64 and the oracle's own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from gradient_cases import arguments_of, assert_by_differences, convolved, in_torch, operands
from problems import BOUNDS, WINOGRAD_BOUND, numpy_dtype, specs
from tvm_conv3d import conv3d_data_gradient
from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.gradient_arguments import data_gradient_of
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, NO_PADS, Conv3DSpec, Pads

#: Windows do not reach the input's end along any axis, and crop its beginning along one.
SPEC = Conv3DSpec(2, (8, 7, 9), 4, 6, (3, 2, 4), (2, 3, 2), (1, 2, 1), (Pads(1, 0), Pads(-1, 1), Pads(0, 2)), groups=2)


def gradient_of(spec: Conv3DSpec, gradient: Any, kernel: Any) -> Any:
    """The public function's result for a forward problem."""
    return conv3d_data_gradient(gradient, kernel, spec.size, **arguments_of(spec))


def check(spec: Conv3DSpec) -> None:
    x, kernel, gradient = operands(spec)
    found = gradient_of(spec, gradient, kernel)
    bound = max(BOUNDS[spec.dtype], WINOGRAD_BOUND if spec.dtype == "float32" else 0)
    assert found.shape == spec.input_shape and found.dtype == numpy_dtype(spec.dtype)
    assert oracle.relative_error(found, oracle.convolve(data_gradient_of(spec), gradient, kernel)) < bound
    convolve = convolved(spec)
    assert_by_differences(lambda at: convolve(at, kernel), x, gradient, found, bound)
    pytest.importorskip("torch")
    assert oracle.relative_error(found, in_torch(spec, x, kernel, gradient)[0]) < bound


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


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_crops_and_windows_that_end_early(dtype: str, data_format: str) -> None:
    check(replace(SPEC, dtype=dtype, data_format=data_format))


def test_sizes_with_one_size_of_output() -> None:
    """Cells that no window reads are 0."""
    spec = Conv3DSpec(1, (2, 6, 7), 3, 4, (2, 2, 2), (4, 4, 4), bias=False)
    _, kernel, gradient = operands(spec)
    for width in (6, 7, 8, 9):
        found = gradient_of(replace(spec, size=(2, 6, width)), gradient, kernel)
        assert found.shape == (1, 2, 6, width, 3)
        read = np.ix_([0], [0, 1], [0, 1, 4, 5], [0, 1, 4, 5], [0, 1, 2])
        assert found[read].all()
        found[read] = 0
        assert not found.any()


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_cells_of_its_window(strides: tuple[int, int, int], value: float) -> None:
    spec = Conv3DSpec(1, (9, 10, 11), 16, 16, (3, 3, 3), strides, pads=(Pads(1, 1),) * 3)
    _, kernel, gradient = operands(spec)
    gradient[0, 2, 3, 4, 5] = value
    found = gradient_of(spec, gradient, kernel)
    with np.errstate(invalid="ignore"):
        wanted = oracle.convolve(data_gradient_of(spec), gradient, kernel)
    finite = np.isfinite(wanted)
    assert 0 < finite.sum() < finite.size
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    assert oracle.relative_error(found[finite], wanted[finite]) < WINOGRAD_BOUND


@pytest.mark.parametrize(("batch", "size"), [(0, (4, 5, 6)), (1, (4, 0, 6)), (1, (1, 1, 1)), (2, (3, 1, 2))])
def test_sizes_of_zero_and_one(batch: int, size: tuple[int, int, int]) -> None:
    spec = Conv3DSpec(batch, size, 3, 4, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)
    _, kernel, gradient = operands(spec)
    found = gradient_of(spec, gradient, kernel)
    wanted = oracle.convolve(data_gradient_of(spec), gradient, kernel)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2])
def test_torchs_orders_of_memory_and_weights(strides: int) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 5, 6, 7, 8)
    conv = torch.nn.Conv3d(5, 12, 3, strides, 1)
    gradient = torch.randn_like(conv(x))
    wanted = torch.nn.grad.conv3d_input(x.shape, conv.weight, gradient, strides, 1)
    for order in (torch.contiguous_format, torch.channels_last_3d):
        found = conv3d_data_gradient(
            gradient.to(memory_format=order),
            conv.weight.detach().permute(2, 3, 4, 1, 0),
            x.shape[2:],
            strides=strides,
            padding=1,
            data_format=CHANNELS_FIRST,
        )
        assert found.is_contiguous(memory_format=order)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_packed_weights_are_shared_by_all_sizes() -> None:
    spec = Conv3DSpec(1, (5, 6, 7), 3, 4, (2, 2, 2), bias=False)
    uses = set()
    for width in (6, 7, 8):
        other = replace(spec, size=(5, 6, width))
        _, kernel, gradient = operands(other)
        gradient_of(other, gradient, kernel)
        uses |= {call.use for call in convolution._calls.values() if call.problem.spec == data_gradient_of(other)}
    assert len(uses) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input_size": (8, 7)}, "`input_size` must be an integer of at least 0, or three"),
        ({"input_size": (8, -7, 9)}, "`input_size` must be an integer of at least 0, or three"),
        ({"input_size": (8, 7, 12)}, r"An input of .* \(8, 7, 12\) has an output of \(3, 2, 5\), and `gradient` is"),
        ({"input_size": (8, 1, 9)}, "The input is too small"),
        ({"gradient": np.zeros((2, 4, 2, 6), "float32")}, "`gradient` must have five axes.*Received: gradient of"),
        ({"w": np.zeros((3, 2, 4, 2), "float32")}, "`w` must have five axes"),
        ({"w": np.zeros((3, 2, 4, 2, 4), "float32")}, r"`w` must be .*, with 6 filters.*permute\(2, 3, 4, 1, 0\)"),
        ({"groups": 4}, "channels of `gradient` must be divisible by `groups`. Received: 6 channels, groups=4"),
        ({"strides": 0}, "`strides` must be an integer of at least 1"),
    ],
)
def test_what_is_refused(more: dict[str, Any], message: str) -> None:
    _, kernel, gradient = operands(replace(SPEC, pads=NO_PADS, dilation=(1, 1, 1), size=(9, 5, 10)))
    arguments = {**arguments_of(SPEC), "padding": 0, "dilation": 1, "input_size": (9, 5, 10)}
    call = {"gradient": gradient, "w": kernel, **arguments}
    assert conv3d_data_gradient(**call).shape == (2, 9, 5, 10, 4)
    with pytest.raises(ValueError, match=re.compile(message)):
        conv3d_data_gradient(**{**call, **more})


def test_complex_numbers_are_refused_by_the_arguments_name() -> None:
    _, kernel, gradient = operands(SPEC)
    with pytest.raises(TypeError, match="`gradient` must hold real numbers"):
        gradient_of(SPEC, gradient.astype(np.complex64), kernel)
