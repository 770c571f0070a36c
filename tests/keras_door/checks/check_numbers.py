"""Results against the definition of a convolution in float64, on the backend of this process."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_cases
from keras_door import BACKEND, all_ours, built, expected, numpy
from layer_samples import sample
from tvm_conv3d.keras import counters
from tvm_conv3d.layer.objects import activations
from tvm_conv3d.reference.oracle import relative_error
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS

#: Relative errors (2-norm) that are allowed.
ERRORS = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2}

#: A sample of the whole grid, of which each case of another size would be compiled anew.
GRID = keras_cases.grid()[::7]


@pytest.mark.parametrize("arguments", GRID, ids=str)
def test_the_grid_of_arguments(arguments: dict[str, Any]) -> None:
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    assert relative_error(numpy(layer(x)), expected(layer, x)) < ERRORS["float32"]
    assert all_ours()


@pytest.mark.parametrize("activation", [*FUSED_ACTIVATIONS, "softmax", "log_softmax", "glu"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_activations(activation: str, data_format: str) -> None:
    # those that have an axis take the last one, whatever it is
    layer = built(activation=activation, data_format=data_format, kernel_size=(3, 3, 2))
    x = sample(keras_cases.input_shape({"data_format": data_format}))
    assert relative_error(numpy(layer(x)), expected(layer, x)) < ERRORS["float32"]
    assert relative_error(numpy(layer(x, training=True)), expected(layer, x)) < ERRORS["float32"]
    assert all_ours()


def test_activations_may_be_any_callable() -> None:
    layer = built(activation=lambda y: y * 2)
    x = sample(keras_cases.input_shape({}))
    doubled = numpy(layer(x))
    layer.activation = activations.linear
    np.testing.assert_allclose(doubled, 2 * numpy(layer(x)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_types(dtype: str) -> None:
    layer, x = built(dtype=dtype, activation="relu"), sample(keras_cases.input_shape({}))
    y = layer(x)
    kind = dtype.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(y.dtype) == kind
    assert relative_error(numpy(keras.ops.cast(y, "float64")), expected(layer, x)) < ERRORS[kind]
    assert all_ours()


@pytest.mark.parametrize("dtype", ["int16", "uint8", "bool"])
def test_whole_numbers_are_cast(dtype: str) -> None:
    layer, x = built(), np.abs(4 * sample(keras_cases.input_shape({}))).astype(dtype)
    assert relative_error(numpy(layer(x)), expected(layer, x)) < ERRORS["float32"]
    assert all_ours()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_belongs(value: float) -> None:
    layer = built(shape=(1, 9, 9, 9, 8), filters=8, padding="same")
    x = sample((1, 9, 9, 9, 8))
    x[0, 4, 4, 4, 0] = value
    np.testing.assert_array_equal(np.isfinite(numpy(layer(x))), np.isfinite(expected(layer, x)))


@pytest.mark.skipif(BACKEND != "torch", reason="of torch is known that it refuses them")
def test_complex_numbers_are_for_the_backend_to_refuse() -> None:
    """Cast, they would lose their imaginary parts without a word."""
    x = sample(keras_cases.input_shape({})).astype("complex64")
    layer, theirs = built(), keras.layers.Conv3D(6, 3)
    theirs.build(x.shape)
    with pytest.raises((TypeError, ValueError, RuntimeError)) as wanted:
        theirs(x)
    with pytest.raises(wanted.type):
        layer(x)


def test_weights_may_change_at_any_time() -> None:
    layer, x = built(), sample(keras_cases.input_shape({}))
    for seed in (5, 6):
        layer.kernel.assign(sample(layer.kernel.shape, seed=seed))
        layer.bias.assign(sample(layer.bias.shape, seed=seed))
        assert relative_error(numpy(layer(x)), expected(layer, x)) < ERRORS["float32"]


def test_sizes_of_one_and_of_none() -> None:
    layer = built(kernel_size=1)
    assert numpy(layer(sample((1, 1, 1, 1, 4)))).shape == (1, 1, 1, 1, 6)
    if BACKEND != "torch":
        # torch's own code says what becomes of these
        assert numpy(layer(np.zeros((0, 2, 2, 2, 4), "float32"))).shape == (0, 2, 2, 2, 6)


def test_no_room_for_a_window_is_an_error() -> None:
    layer = built(kernel_size=3)
    with pytest.raises((ValueError, RuntimeError), match=r"zero or negative|Kernel size can't be greater|window"):
        layer(np.zeros((2, 2, 2, 5, 4), "float32"))


def test_any_order_of_memory_is_read() -> None:
    layer, x = built(), sample((2, 4, 5, 6, 7))
    tensor = keras.ops.transpose(keras.ops.convert_to_tensor(x), (0, 2, 3, 4, 1))
    assert relative_error(numpy(layer(tensor)), expected(layer, x.transpose(0, 2, 3, 4, 1))) < ERRORS["float32"]


def test_lora() -> None:
    layer, x = built(activation="relu"), sample(keras_cases.input_shape({}))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(sample(layer.lora_kernel_b.shape, seed=9))
    merged = built(activation="relu")
    merged.set_weights([numpy(layer.kernel), numpy(layer.bias)])
    assert relative_error(numpy(layer(x)), expected(merged, x)) < ERRORS["float32"]
    assert counters().keras == {}
