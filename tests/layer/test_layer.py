"""Calling a layer: arguments, activations, dtypes, copies, threads; quirks of Keras that are kept or are not."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import numpy as np
import pytest

from keras_cases import CALLS, expected
from layer_samples import SHAPE, random_weights, sample
from tvm_conv3d.layer.conv3d import Conv3D
from tvm_conv3d.layer.objects import activations
from tvm_conv3d.reference import oracle
from tvm_conv3d.support import dtypes

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
