"""Gradients of convolutions on GPUs: of the input, in any order of threads; those of weights are refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cuda_checks import assert_right, default_plans
from cuda_fakes import GpuArray, fake_gpu
from cuda_on_cpu.execute import Order
from gradient_cases import arguments_of, operands
from problems import BOUNDS
from tvm_conv3d import conv3d_data_gradient, conv3d_weight_gradient
from tvm_conv3d.functional import convolution
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
    gradients = [data_gradient_of(replace(spec, bias=False)) for spec in FORWARD]
    specs = [
        replace(spec, dtype=dtype, data_format=data_format)
        for spec in gradients
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


def test_gradients_of_weights_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FORWARD[0]
    x, _, gradient = operands(spec)
    with fake_gpu(monkeypatch) as gpu:
        for given in ((GpuArray(gpu, x), gradient), (x, GpuArray(gpu, gradient))):
            with pytest.raises(ValueError, match="GPU"):
                conv3d_weight_gradient(*given, spec.kernel, **arguments_of(spec))
        assert not gpu.launched
