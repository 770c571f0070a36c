"""The layer: building, calling, weights, losses, dtypes, LoRA, quirks of Keras that are kept and those that are not."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import numpy as np
import pytest

from keras_cases import CALLS, expected
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import activations, initializers, regularizers
from tvm_conv3d.reference import oracle
from tvm_conv3d.support import dtypes

SHAPE = (2, 5, 5, 5, 4)


def sample(shape=SHAPE, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtypes.numpy_dtype(dtype))


def random_weights(layer, seed=1):
    layer.set_weights([sample(weight.shape, seed=seed + i) for i, weight in enumerate(layer.weights)])
    return layer


# Building


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


# Calling


@pytest.mark.parametrize("arguments", CALLS)
def test_result(arguments):
    layer = Conv3D(**{"filters": 3, "kernel_size": (3, 2, 2), **arguments})
    shape = (2, 4, 5, 6, 7) if layer.data_format == "channels_first" else (2, 5, 6, 7, 4)
    x = sample(shape)
    layer.build(shape)
    random_weights(layer)
    y = layer(x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    assert y.shape == layer.compute_output_shape(shape)
    assert oracle.relative_error(y, expected(layer, x)) < 1e-5


def test_bias_belongs_to_channels():
    # Where the last spatial size equals the filters, Keras on TensorFlow adds the bias along that axis.
    layer = Conv3D(3, 1, data_format="channels_first", kernel_initializer="zeros", bias_initializer=np.array([1, 2, 3]))
    y = layer(sample((1, 2, 3, 3, 3)))
    np.testing.assert_array_equal(y.mean(axis=(0, 2, 3, 4)), [1, 2, 3])


def test_any_size_follows_any_other():
    layer = Conv3D(3, 2)
    for shape in (SHAPE, (1, 2, 3, 4, 4), SHAPE, (3, 6, 2, 2, 4)):
        x = sample(shape)
        assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5


def test_call_builds_and_repeats():
    layer = Conv3D(3, 2)
    x = sample()
    first = layer(x)
    assert layer.built
    second = layer(x)
    assert first is not second
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(layer.call(x), first)
    np.testing.assert_array_equal(layer(inputs=x, training=True), first)


def test_call_signature():
    layer = Conv3D(3, 2)
    x = sample()
    for arguments, keywords in (((), {}), ((x, x), {}), ((x,), {"foo": 1}), ((x,), {"mask": None})):
        with pytest.raises(TypeError):
            layer(*arguments, **keywords)


POSITIONAL = (
    "Only input tensors may be passed as positional arguments. The following argument value should be passed as a "
    "keyword argument: "
)
CALL_ERRORS = [
    (
        sample((5, 5, 5, 4)),
        "Input 0 with name 'None' of layer 'c' is incompatible with the layer: expected min_ndim=5, found ndim=4. "
        "Full shape received: (5, 5, 5, 4)",
    ),
    (
        sample((2, 5, 5, 5, 3)),
        "Input 0 with name 'None' of layer 'c' is incompatible with the layer: expected axis -1 of input shape to have "
        "value 4, but received input with shape (2, 5, 5, 5, 3)",
    ),
    (
        sample((2, 5, 5, 5, 5, 4)),
        "Kernel shape must have the same length as input, but received kernel of shape (2, 2, 2, 4, 3) and input of "
        "shape (2, 5, 5, 5, 5, 4).",
    ),
    (
        sample((2, 1, 5, 5, 4)),
        "Computed output size would be zero or negative. Received `inputs shape=(2, 1, 5, 5, 4)`, "
        "`kernel shape=(2, 2, 2, 4, 3)`, `dilation_rate=[1 1 1]`, `strides=(1, 1, 1)`, `padding=valid`.",
    ),
    (
        np.float32(3),
        "Input 0 with name 'None' of layer 'c' is incompatible with the layer: expected min_ndim=5, found ndim=0. "
        "Full shape received: ()",
    ),
    ([[0.5, 2.0]], POSITIONAL + "0.5 (of type <class 'float'>)"),
    (3.0, POSITIONAL + "3.0 (of type <class 'float'>)"),
    ("s", POSITIONAL + "s (of type <class 'str'>)"),
    ([], POSITIONAL + "[] (of type <class 'list'>)"),
    ({"a": 1}, POSITIONAL + "1 (of type <class 'int'>)"),
    (None, "Inputs to a layer should be tensors. Got 'None' (of type <class 'NoneType'>) as input for layer 'c'."),
    ([sample()], "Layer 'c' takes one tensor. Received: <class 'list'>"),
]


@pytest.mark.parametrize(("inputs", "message"), CALL_ERRORS)
def test_call_errors_of_a_built_layer(inputs, message):
    layer = Conv3D(3, 2, name="c")
    layer.build(SHAPE)
    with pytest.raises(ValueError) as caught:
        layer(inputs)
    assert str(caught.value) == message


def test_a_tensor_that_cannot_be_read_keeps_its_error():
    with pytest.raises(TypeError, match="real numbers"):
        Conv3D(3, 2)(sample().astype("complex64"))


def test_channel_mismatch_in_channels_first():
    layer = Conv3D(3, 2, name="c", data_format="channels_first")
    layer.build((2, 4, 5, 5, 5))
    with pytest.raises(ValueError, match="expected axis 1 of input shape to have value 4, but received"):
        layer(sample((2, 3, 5, 5, 5)))


def test_call_errors_of_an_unbuilt_layer():
    layer = Conv3D(3, 2, name="q")
    with pytest.raises(ValueError, match="of layer 'q' is incompatible with the layer: expected min_ndim=5"):
        layer(sample((5, 5, 5, 4)))
    with pytest.raises(ValueError, match="Kernel shape must have the same length as input"):
        layer(sample((2, 5, 5, 5, 5, 4)))
    assert not layer.built


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
def test_ints_and_bools_are_cast(dtype):
    x = sample(seed=3).astype(dtype)
    layer = Conv3D(3, 2)
    y = layer(x)
    assert y.dtype == np.float32
    assert oracle.relative_error(y, expected(layer, x)) < 1e-5


def test_no_sample():
    layer = Conv3D(3, 2, activity_regularizer="l1")
    y = layer(sample((0, 5, 5, 5, 4)))
    assert (y.shape, y.dtype) == ((0, 4, 4, 4, 3), np.float32)
    assert layer.losses == [0.0]


@pytest.mark.parametrize("activation", ["relu", "softmax", "sparsemax"])
def test_no_cell(activation):
    layer = Conv3D(3, 2, padding="same", activation=activation)
    assert layer(sample((2, 0, 5, 5, 4))).shape == (2, 0, 5, 5, 3)
    with pytest.raises(ValueError, match="Computed output size would be zero or negative"):
        Conv3D(3, 2)(sample((2, 0, 5, 5, 4)))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(3, 2)
    x = sample()
    tensor = torch.from_numpy(x).requires_grad_()
    with torch.no_grad():
        y = layer(tensor)
    assert isinstance(y, torch.Tensor)
    with pytest.raises(RuntimeError, match="computes no gradients"):
        layer(tensor)
    np.testing.assert_allclose(y.numpy(), layer(x), rtol=1e-6)


# Activations


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax", "glu"])
def test_row_activations_act_on_the_last_axis(name, data_format):
    layer = Conv3D(4, 2, activation=name, data_format=data_format)
    x = sample((2, 5, 5, 5, 5))
    y = layer(x)
    layer.activation = None
    np.testing.assert_allclose(y, activations.get(name)(layer(x)), rtol=1e-5, atol=1e-6)
    assert y.shape[-1] == (2 if name == "glu" else 4)


def test_glu_of_an_odd_axis():
    with pytest.raises(ValueError, match="must be even"):
        Conv3D(3, 2, activation="glu")(sample())


def test_threshold_resolves_but_cannot_be_called():
    layer = Conv3D(3, 2, activation="threshold")
    with pytest.raises(TypeError, match="default_value"):
        layer(sample())


def test_custom_activation_gets_what_the_caller_passed():
    seen = []

    def double(x):
        seen.append(type(x))
        return x * 2

    layer = Conv3D(3, 2, activation=double)
    x = sample()
    y = layer(x)
    assert seen == [np.ndarray]
    layer.activation = None
    np.testing.assert_allclose(y, 2 * layer(x), rtol=1e-6)


def test_custom_torch_activation():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(3, 2, activation=torch.nn.functional.relu)
    y = layer(torch.from_numpy(sample()))
    assert isinstance(y, torch.Tensor)
    assert float(y.min()) == 0


def test_activation_result_is_writable():
    def frozen(x):
        y = x.copy()
        y.setflags(write=False)
        return y

    # Named like Keras's own, it is given NumPy and its result restored.
    frozen.__module__ = "keras.src.activations.frozen"
    y = Conv3D(3, 2, activation=frozen)(sample())
    y[...] = 0


def test_arguments_may_change_between_calls():
    layer = Conv3D(3, 2)
    x = sample()
    assert layer(x).shape == (2, 4, 4, 4, 3)
    layer.padding = "same"
    layer.activation = activations.relu
    y = layer(x)
    assert y.shape == (2, 5, 5, 5, 3)
    assert y.min() == 0


def test_seen_shapes_are_bounded(monkeypatch):
    monkeypatch.setattr("tvm_conv3d.layer.conv3d._MAX_SHAPES", 2)
    layer = Conv3D(1, 1)
    for batch in (0, 1, 2, 3):
        layer(sample((batch, 2, 2, 2, 1)))
    assert len(layer._prepared) <= 2


# Dtypes


@pytest.mark.parametrize(
    ("policy", "variable", "output", "tolerance"),
    [
        ("float32", "float32", "float32", 1e-5),
        ("float64", "float64", "float64", 1e-13),
        ("float16", "float16", "float16", 2e-3),
        ("bfloat16", "bfloat16", "bfloat16", 2e-2),
        ("mixed_float16", "float32", "float16", 2e-3),
        ("mixed_bfloat16", "float32", "bfloat16", 2e-2),
    ],
)
def test_dtype_policies(policy, variable, output, tolerance):
    layer = Conv3D(3, 2, dtype=policy, activation="relu", kernel_regularizer="l2", activity_regularizer="l2")
    x = sample(dtype="float64")
    y = layer(x)
    assert y.dtype == dtypes.numpy_dtype(output)
    assert [weight.dtype for weight in layer.weights] == [variable, variable]
    assert [loss.dtype.name for loss in layer.losses] == [output, variable]
    assert oracle.relative_error(y, expected(layer, x)) < tolerance


def test_autocast_is_kept():
    assert Conv3D(3, 2, autocast=False).autocast is False


# Weights


def test_get_and_set_weights():
    layer = Conv3D(3, 2)
    x = sample()
    before = layer(x)
    weights = layer.get_weights()
    weights[0][:] = 7
    np.testing.assert_array_equal(layer(x), before)
    layer.set_weights([2 * weight for weight in layer.get_weights()])
    np.testing.assert_allclose(layer(x), 2 * before, rtol=1e-5)
    layer.bias.assign(np.ones(3))
    np.testing.assert_allclose(layer(x), 2 * before + 1, rtol=1e-4, atol=1e-5)


def test_set_weights_errors():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError) as caught:
        layer.set_weights([1])
    assert str(caught.value) == (
        "You called `set_weights(weights)` on layer 'c' with a weight list of length 1, "
        "but the layer was expecting 0 weights."
    )
    layer.build(SHAPE)
    before = layer.get_weights()
    with pytest.raises(ValueError) as caught:
        layer.set_weights([np.ones((2, 2, 2, 4, 3)), np.ones(4)])
    assert str(caught.value) == "Layer c weight shape (3,) is not compatible with provided weight shape (4,)."
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])
    with pytest.raises(AttributeError, match="shape"):
        layer.set_weights([1, 2])


def test_weights_in_pytorchs_order_are_refused_with_the_way_to_turn_them():
    layer = Conv3D(3, 2, name="c")
    layer.build(SHAPE)
    foreign = np.ones((3, 4, 2, 2, 2))
    for take in (lambda x: layer.set_weights([x, np.ones(3)]), layer.kernel.assign):
        with pytest.raises(ValueError, match=r"fits after `transpose\(2, 3, 4, 1, 0\)`"):
            take(foreign)
        take(foreign.transpose(2, 3, 4, 1, 0))
        for other in (np.ones((3, 5, 2, 2, 2)), np.ones((4, 3, 2, 2, 2)), np.ones((3, 4, 2, 2))):
            with pytest.raises(ValueError) as caught:
                take(other)
            assert "transpose" not in str(caught.value)


def test_variables():
    layer = Conv3D(3, 2)
    layer.build(SHAPE)
    kernel = layer.kernel
    version = kernel.version
    kernel.assign_add(np.ones(kernel.shape)).assign_sub(np.ones(kernel.shape))
    assert kernel.version == version + 2
    np.testing.assert_array_equal(np.asarray(kernel), kernel.numpy())
    np.testing.assert_array_equal(kernel * 2 + kernel, kernel.numpy() * 2 + kernel.numpy())
    np.testing.assert_array_equal(kernel[0], kernel.numpy()[0])
    assert np.asarray(kernel, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        kernel.value[...] = 0
    np.asarray(kernel)[...] = 0
    assert kernel.numpy().any()
    with pytest.raises(ValueError, match=r"variable\.shape=\(3,\), Received: value\.shape=\(4,\)"):
        layer.bias.assign(np.ones(4))
    assert repr(layer.bias).startswith(f"<Variable path={layer.name}/bias, shape=(3,), dtype=float32, value=[")


def test_trainable():
    layer = Conv3D(3, 2, kernel_regularizer="l2", activity_regularizer="l1")
    layer(sample())
    assert layer.trainable_weights == layer.weights == layer.trainable_variables == layer.variables
    assert len(layer.losses) == 2
    layer.trainable = False
    assert not layer.kernel.trainable
    assert layer.trainable_weights == []
    assert layer.non_trainable_weights == layer.weights == layer.non_trainable_variables
    assert len(layer.losses) == 1
    layer.kernel.trainable = True
    assert layer.trainable_weights == []
    frozen = Conv3D(3, 2, trainable=False)
    frozen.build(SHAPE)
    assert frozen.trainable_weights == []


def test_count_params():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError) as caught:
        layer.count_params()
    assert str(caught.value) == (
        "You tried to call `count_params` on layer 'c', but the layer isn't built. "
        "You can build it manually via: `layer.build(input_shape)`."
    )
    layer.build(SHAPE)
    assert layer.count_params() == 2 * 2 * 2 * 4 * 3 + 3


# Losses


def test_losses():
    layer = Conv3D(3, 2, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer=regularizers.L1(0.1))
    layer.build(SHAPE)
    random_weights(layer)
    kernel, bias = layer.get_weights()
    own = [0.01 * np.square(kernel).sum(), 0.01 * np.abs(bias).sum()]
    np.testing.assert_allclose(layer.losses, own, rtol=1e-5)
    for seed in (0, 1):
        y = layer(sample(seed=seed))
        np.testing.assert_allclose(layer.losses, [0.1 * np.abs(y).sum() / 2, *own], rtol=1e-5)
    layer.call(sample(seed=2))
    np.testing.assert_allclose(layer.losses[0], 0.1 * np.abs(y).sum() / 2, rtol=1e-5)


def test_custom_regularizers():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = Conv3D(3, 2, kernel_regularizer=lambda w: 2.0, activity_regularizer=lambda y: torch.sum(torch.abs(y)))
    y = layer(torch.from_numpy(sample()))
    np.testing.assert_allclose(layer.losses, [np.abs(y.numpy()).sum() / 2, 2.0], rtol=1e-5)


def test_orthogonal_regularizer_refuses_a_kernel():
    layer = Conv3D(3, 2, kernel_regularizer="orthogonal_regularizer")
    layer.build(SHAPE)
    with pytest.raises(ValueError, match="Inputs to OrthogonalRegularizer must have rank 2"):
        _ = layer.losses


def test_constraints_wait_for_apply():
    layer = Conv3D(3, 2, kernel_constraint="non_neg")
    layer.build(SHAPE)
    random_weights(layer)
    x = sample()
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5
    assert layer.kernel.numpy().min() < 0
    layer.apply_constraints()
    assert layer.kernel.numpy().min() == 0
    assert layer.bias.numpy().min() < 0
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5


# LoRA, quantization


def test_lora():
    layer = Conv3D(3, 2, name="c", kernel_regularizer="l2")
    x = sample()
    before = layer(x)
    layer.enable_lora(2, lora_alpha=4)
    np.testing.assert_allclose(layer(x), before, rtol=1e-6)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias", "lora_kernel_a", "lora_kernel_b"]
    assert [weight.name for weight in layer.trainable_weights] == ["bias", "lora_kernel_a", "lora_kernel_b"]
    assert [weight.shape for weight in layer.weights[2:]] == [(2, 2, 2, 4, 2), (2, 3)]
    assert len(layer.losses) == 2
    random_weights(layer)
    kernel, _, a, b = layer.get_weights()
    np.testing.assert_allclose(layer.kernel, kernel + 2 * (a @ b), rtol=1e-5, atol=1e-6)
    assert oracle.relative_error(layer(x), expected(layer, x)) < 1e-5
    assert (layer.get_config()["lora_rank"], layer.get_config()["lora_alpha"]) == (2, 4)
    with pytest.raises(ValueError, match=r"lora is already enabled\. This can only be done once per layer\."):
        layer.enable_lora(2)


def test_lora_from_the_constructor():
    layer = Conv3D(3, 2, lora_rank=2, dtype="mixed_float16")
    assert not layer.lora_enabled
    layer.build(SHAPE)
    assert layer.lora_enabled
    assert [weight.dtype for weight in layer.weights] == ["float32"] * 4
    assert layer.kernel.dtype == np.float16
    assert layer.lora_alpha == 2


def test_lora_is_refused():
    with pytest.raises(ValueError, match=r"Cannot enable lora on a layer that isn't yet built\."):
        Conv3D(3, 2).enable_lora(2)
    with pytest.raises(ValueError, match=r"Lora is incompatible with kernel constraints\."):
        Conv3D(3, 2, kernel_constraint="non_neg", lora_rank=2).build(SHAPE)


def test_quantize_is_not_available():
    layer = Conv3D(3, 2, name="c")
    with pytest.raises(ValueError, match=r"Cannot quantize a layer that isn't yet built\."):
        layer.quantize("int8")
    layer.build(SHAPE)
    with pytest.raises(NotImplementedError) as caught:
        layer.quantize("int8")
    assert str(caught.value) == "Layer Conv3D does not have a `quantize` method implemented."


# Copies, threads


def test_repr():
    layer = Conv3D(3, 2, name="cc")
    assert repr(layer) == str(layer) == "<Conv3D name=cc, built=False>"
    layer.build(SHAPE)
    assert repr(layer) == "<Conv3D name=cc, built=True>"
    assert layer.supports_masking is False


@pytest.mark.parametrize("how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(how):
    layer = Conv3D(3, 2, name="c", activation="swish", kernel_regularizer="l2", lora_rank=1)
    assert how(layer).get_config() == layer.get_config()
    x = sample()
    y = layer(x)
    twin = how(layer)
    np.testing.assert_array_equal(twin(x), y)
    assert (twin.name, twin.path, twin.losses) == (layer.name, layer.path, layer.losses)
    twin.bias.assign(np.ones(3))
    np.testing.assert_array_equal(layer(x), y)
    assert np.abs(twin(x) - y).max() > 0
    with pytest.raises(ValueError, match="read-only"):
        twin.bias.value[...] = 0


def test_threads_share_a_layer():
    layer = Conv3D(3, 2)
    inputs = [sample(seed=seed) for seed in range(8)]
    results: dict[int, np.ndarray] = {}

    def run(number):
        results[number] = layer(inputs[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layer.weights) == 2
    for number, x in enumerate(inputs):
        assert oracle.relative_error(results[number], expected(layer, x)) < 1e-5


def test_threads_build_once():
    drawn = []

    def slow(shape, dtype=None):
        drawn.append(shape)
        time.sleep(0.05)
        return np.ones(shape, dtype)

    layer = Conv3D(3, 2, kernel_initializer=slow)
    barrier = threading.Barrier(4)
    results = []

    def run():
        barrier.wait()
        results.append(layer(sample()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(drawn) == 1
