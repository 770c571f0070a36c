"""Building a layer: shapes, checks, initializers, and the shape of what it gives."""

from __future__ import annotations

import numpy as np
import pytest

from layer_samples import SHAPE
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import initializers


def test_weights_after_build():
    layer = Conv3D(6, (3, 2, 1), groups=2, name="c")
    assert layer.build((None, 5, 5, 5, 4)) is None
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
    assert [weight.path for weight in layer.weights] == ["c/kernel", "c/bias"]
    assert [weight.shape for weight in layer.weights] == [(3, 2, 1, 2, 6), (6,)]
    assert [weight.dtype for weight in layer.weights] == ["float32", "float32"]
    assert layer.kernel is layer.weights[0]
    assert layer.bias is layer.weights[1]
    assert layer.kernel.ndim == 5
    assert layer.path == "c"
    assert repr(layer.input_spec) == "InputSpec(min_ndim=5, axes={-1: 4})"
    assert layer.get_build_config() == {"input_shape": (None, 5, 5, 5, 4)}


def test_weights_before_build():
    layer = Conv3D(3, 2)
    assert layer.weights == layer.trainable_weights == layer.non_trainable_weights == layer.losses == []
    assert repr(layer.input_spec) == "InputSpec(min_ndim=5)"
    assert layer.path is None
    assert layer.get_build_config() is None
    with pytest.raises(AttributeError, match="You must build the layer before accessing `kernel`"):
        _ = layer.kernel
    with pytest.raises(AttributeError, match="You must build the layer before accessing `bias`"):
        _ = layer.bias


def test_no_bias():
    layer = Conv3D(3, 2, use_bias=False)
    layer.build(SHAPE)
    assert layer.bias is None
    assert len(layer.weights) == 1


def test_channels_first_build():
    layer = Conv3D(3, 2, data_format="channels_first")
    layer.build((None, 4, None, None, None))
    assert layer.kernel.shape == (2, 2, 2, 4, 3)
    assert repr(layer.input_spec) == "InputSpec(min_ndim=5, axes={1: 4})"


@pytest.mark.parametrize("shape", [(None, None, None, None, 4), [None, 5, 5, 5, 4]])
def test_unknown_dimensions_and_lists(shape):
    layer = Conv3D(3, 2)
    layer.build_from_config({"input_shape": shape})
    assert layer.built
    Conv3D(3, 2).build_from_config(None)


BUILD_ERRORS = [
    (
        {"groups": 2, "filters": 4},
        (None, 5, 5, 5, 3),
        ValueError,
        "The number of input channels must be evenly divisible by the number of groups. "
        "Received groups=2, but the input has 3 channels (full input shape is (None, 5, 5, 5, 3)).",
    ),
    ({}, (None, 5, 5, 5, None), TypeError, "unsupported operand type(s) for %: 'NoneType' and 'int'"),
    (
        {"kernel_size": 3},
        (2, 2, 5, 5, 4),
        ValueError,
        "Computed output size would be zero or negative. Received `inputs shape=(2, 2, 5, 5, 4)`, "
        "`kernel shape=(3, 3, 3, 4, 3)`, `dilation_rate=[1 1 1]`, `strides=(1, 1, 1)`, `padding=valid`.",
    ),
    (
        {"kernel_size": 3, "groups": 2, "filters": 2, "data_format": "channels_first"},
        (2, 4, 2, 5, 5),
        ValueError,
        "Computed output size would be zero or negative. Received `inputs shape=(2, 4, 2, 5, 5)`, "
        "`kernel shape=(3, 3, 3, 4, 2)`, `dilation_rate=[1 1 1]`, `strides=(1, 1, 1)`, `padding=valid`.",
    ),
    (
        {},
        (None, 5, 5, 4),
        ValueError,
        "Kernel shape must have the same length as input, but received kernel of shape (2, 2, 2, 4, 3) "
        "and input of shape (None, 5, 5, 4).",
    ),
    (
        {},
        (None, 5, 5, 5, 5, 4),
        ValueError,
        "Kernel shape must have the same length as input, but received kernel of shape (2, 2, 2, 4, 3) "
        "and input of shape (None, 5, 5, 5, 5, 4).",
    ),
    (
        {},
        (1, 5, 5, 5, 0),
        ValueError,
        "The input must have at least one channel. Received: input_shape=(1, 5, 5, 5, 0)",
    ),
    (
        {"kernel_initializer": "identity"},
        SHAPE,
        ValueError,
        "Identity matrix initializer can only be used for 2D matrices. Received: shape=(2, 2, 2, 4, 3) of rank 5.",
    ),
    (
        {"kernel_initializer": np.ones((2, 2, 2, 1, 3))},
        SHAPE,
        ValueError,
        "Expected `shape` to be (2, 2, 2, 1, 3) for direct tensor as initializer. Received shape=(2, 2, 2, 4, 3)",
    ),
    (
        {"kernel_initializer": lambda shape, dtype=None: np.ones((2, 2)), "name": "c"},
        SHAPE,
        ValueError,
        "The initializer of c/kernel must return an array of shape (2, 2, 2, 4, 3). Received: (2, 2)",
    ),
]


@pytest.mark.parametrize(("arguments", "shape", "error", "message"), BUILD_ERRORS)
def test_build_errors(arguments, shape, error, message):
    layer = Conv3D(**{"filters": 3, "kernel_size": 2, **arguments})
    with pytest.raises(error) as caught:
        layer.build(shape)
    assert str(caught.value) == message
    assert not layer.built
    assert layer.weights == []


def test_same_padding_is_never_refused_for_size():
    Conv3D(3, 3, padding="same").build((2, 2, 5, 5, 4))


def test_building_twice_is_refused():
    layer = Conv3D(3, 2)
    layer.build(SHAPE)
    with pytest.raises(ValueError, match="You cannot add new elements of state"):
        layer.build(SHAPE)


def test_default_initializers():
    layer = Conv3D(8, 3, kernel_initializer=None, bias_initializer=None, groups=2)
    layer.build((None, 5, 5, 5, 4))
    limit = np.sqrt(6 / (27 * (2 + 8)))
    assert 0.9 * limit < np.abs(layer.kernel.numpy()).max() <= limit
    # Keras draws glorot_uniform here against its documentation.
    assert not layer.bias.numpy().any()
    assert layer.get_config()["kernel_initializer"] is None
    assert layer.get_config()["bias_initializer"] is None


@pytest.mark.parametrize(
    "initializer",
    [
        "ones",
        "Ones",
        initializers.Ones,
        initializers.Ones(),
        {"class_name": "Ones", "config": {}},
        lambda shape, dtype=None: np.ones(shape, dtype),
        np.ones((2, 2, 2, 4, 3)),
    ],
)
def test_kernel_initializer_forms(initializer):
    layer = Conv3D(3, 2, kernel_initializer=initializer, dtype="float16")
    layer.build(SHAPE)
    np.testing.assert_array_equal(layer.kernel.numpy(), np.ones((2, 2, 2, 4, 3), np.float16))


def test_initializer_may_return_a_tensor_with_gradient():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(3, 2, kernel_initializer=lambda shape, dtype=None: torch.nn.Parameter(torch.ones(shape)))
    layer.build(SHAPE)
    np.testing.assert_array_equal(layer.kernel.numpy(), np.ones((2, 2, 2, 4, 3)))


OUTPUT_SHAPES = [
    ({}, (None, None, 5, 5, 4), (None, None, 4, 4, 3)),
    ({}, [2, 9, 5, 5, 4], (2, 8, 4, 4, 3)),
    ({"padding": "same", "strides": 2}, (2, 0, 5, 5, 4), (2, 0, 3, 3, 3)),
    ({"padding": "same", "strides": 2, "data_format": "channels_first"}, (2, 4, 0, 5, 7), (2, 3, 0, 3, 4)),
    ({"dilation_rate": (2, 1, 1)}, (2, 9, 5, 5, 4), (2, 7, 4, 4, 3)),
    ({"strides": (2, 1, 3)}, (2, 9, 5, 5, 4), (2, 4, 4, 2, 3)),
    ({"activation": "glu", "filters": 4}, SHAPE, (2, 4, 4, 4, 4)),
]


@pytest.mark.parametrize(("arguments", "shape", "output"), OUTPUT_SHAPES)
def test_compute_output_shape(arguments, shape, output):
    layer = Conv3D(**{"filters": 3, "kernel_size": 2, **arguments})
    assert layer.compute_output_shape(shape) == output
    assert not layer.built
