"""Gradients against torch's in float64, and that they are asked for: eagerly and in functions that are compiled."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_cases
from keras_door import BACKEND, all_ours, built, gradients, numpy
from layer_samples import sample
from tvm_conv3d.keras import counters
from tvm_conv3d.reference.oracle import relative_error
from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, WEIGHT_GRADIENT, same_padding
from tvm_conv3d.support.lru import Recent

torch = pytest.importorskip("torch", reason="torch is not installed")

not_on_torch = pytest.mark.skipif(BACKEND == "torch", reason="torch's gradients are tested with its operators")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="a tool of another backend")

CASES: list[dict[str, Any]] = [
    {},
    {"activation": "relu", "padding": "same"},
    {"activation": "silu", "padding": "same", "strides": 2},
    {"activation": "gelu", "data_format": "channels_first", "strides": (1, 2, 1)},
    {"dilation_rate": (1, 2, 1), "activation": "tanh"},
    {"groups": 2, "padding": "same", "activation": "leaky_relu"},
    {"groups": 2, "data_format": "channels_first", "use_bias": False},
]


#: Relative errors (2-norm) that are allowed of gradients of lower types.
ERRORS = {"float64": 1e-13, "float16": 4e-3, "bfloat16": 3e-2}


def of_torch(layer: Any, x: np.ndarray, of_y: np.ndarray) -> tuple[list[Any], Any]:
    """Input and weights in float64, and the sum of `layer(x) * of_y`, by torch."""
    data, *weights = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, *layer.get_weights()))
    first = layer.data_format == CHANNELS_FIRST
    given = data if first else data.permute(0, 4, 1, 2, 3)
    if layer.padding == "same":
        pads = same_padding(tuple(given.shape[2:]), layer.kernel_size, layer.strides, layer.dilation_rate)
        given = torch.nn.functional.pad(given, [pad for pair in reversed(pads) for pad in pair])
    y = torch.nn.functional.conv3d(
        given,
        weights[0].permute(4, 3, 0, 1, 2),
        weights[1] if layer.use_bias else None,
        layer.strides,
        0,
        layer.dilation_rate,
        layer.groups,
    )
    activations = {
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "tanh": torch.tanh,
        "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.2),
        "linear": lambda t: t,
    }
    y = activations[layer.activation.__name__](y if first else y.permute(0, 2, 3, 4, 1))
    return [data, *weights], (y * torch.tensor(of_y.astype(np.float64))).sum()


def expected(layer: Any, x: np.ndarray, of_y: np.ndarray, order: int = 1) -> list[np.ndarray]:
    """The gradients in float64, as `keras_door.gradients` has them."""
    given, loss = of_torch(layer, x, of_y)
    for _ in range(order - 1):
        found = torch.autograd.grad(loss, given, create_graph=True)
        loss = sum(each.square().sum() for each in found)
    return [each.numpy() for each in torch.autograd.grad(loss, given)]


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_gradients(arguments: dict[str, Any], traced: bool) -> None:
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    for found, right in zip(gradients(layer, x, of_y, traced=traced), expected(layer, x, of_y), strict=True):
        assert relative_error(found, right) < 1e-5
    assert all_ours()


def results_computed(traced: bool) -> int:
    """Convolutions beside gradients of a linear one: functions of TensorFlow's leave out what nothing asks for."""
    return 0 if traced and BACKEND == "tensorflow" else 1


@not_on_torch
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
def test_gradients_are_computed_here(traced: bool) -> None:
    layer, x = built(), sample(keras_cases.input_shape({}))
    gradients(layer, x, sample(tuple(layer.compute_output_shape(x.shape)), seed=8), traced=traced)
    assert (counters().ours, counters().keras) == (2 + results_computed(traced), {})


@not_on_torch
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"activation": "tanh", "padding": "same", "strides": 2},
        {"groups": 2, "data_format": "channels_first", "dilation_rate": (1, 2, 1), "use_bias": False},
    ],
    ids=str,
)
def test_gradients_of_gradients(arguments: dict[str, Any], traced: bool) -> None:
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    right = expected(layer, x, of_y, 2)
    for found, wanted in zip(gradients(layer, x, of_y, traced=traced, order=2), right, strict=True):
        assert relative_error(found, wanted) < 1e-5
    # the convolution and its gradients, and more by those of the gradients
    assert all_ours()
    assert counters().ours > 3


@not_on_torch
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", ERRORS)
def test_gradients_of_types(dtype: str, traced: bool) -> None:
    layer, x = built(dtype=dtype, activation="relu"), sample(keras_cases.input_shape({}))
    given = keras.ops.cast(x, dtype)
    of_y = keras.ops.cast(sample(tuple(layer.compute_output_shape(x.shape)), seed=8), dtype)
    exact = (numpy(keras.ops.cast(each, "float64")) for each in (given, of_y))
    wide = built(dtype="float64", activation="relu")
    wide.set_weights([numpy(keras.ops.cast(weight.value, "float64")) for weight in layer.weights])
    for found, right in zip(gradients(layer, given, of_y, traced=traced), expected(wide, *exact), strict=True):
        assert relative_error(found.astype(np.float64), right) < ERRORS[dtype]
    assert all_ours()


@not_on_torch
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
def test_what_there_is_no_plan_for_is_the_backends(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_conv3d.keras.backends import array_gradients

    monkeypatch.setattr(array_gradients, "_calls", Recent(8))
    monkeypatch.setattr(array_gradients, "_planned", lambda spec: f"no {spec.direction}")
    layer, x = built(), sample(keras_cases.input_shape({}))
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    for found, right in zip(gradients(layer, x, of_y, traced=traced), expected(layer, x, of_y), strict=True):
        assert relative_error(found, right) < 1e-5
    assert counters().ours == results_computed(traced)
    assert counters().keras == {f"data gradient: no {DATA_GRADIENT}": 1, f"weight gradient: no {WEIGHT_GRADIENT}": 1}


@on_jax
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])
def test_products_with_hessians_in_both_modes(traced: bool) -> None:
    import jax

    arguments = {"activation": "tanh", "padding": "same", "strides": 2}
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    along = [sample(tuple(each.shape), seed=20 + number) for number, each in enumerate([x, *layer.weights])]

    def loss(values: Any) -> Any:
        return (layer.stateless_call(values[1:], [], values[0])[0] * of_y).sum()

    def forward_over_reverse(values: Any) -> Any:
        return jax.jvp(jax.grad(loss), (values,), (along,))[1]

    def reverse_over_forward(values: Any) -> Any:
        return jax.grad(lambda each: jax.jvp(loss, (each,), (along,))[1])(values)

    given, sum_of_torch = of_torch(layer, x, of_y)
    slopes = torch.autograd.grad(sum_of_torch, given, create_graph=True)
    slope = sum((a * torch.tensor(b.astype(np.float64))).sum() for a, b in zip(slopes, along, strict=True))
    right = [each.numpy() for each in torch.autograd.grad(slope, given)]
    values = [jax.numpy.asarray(x), *(weight.value for weight in layer.weights)]
    for function in (forward_over_reverse, reverse_over_forward):
        for found, wanted in zip((jax.jit(function) if traced else function)(values), right, strict=True):
            assert relative_error(numpy(found), wanted) < 1e-5
    assert all_ours()


@on_jax
def test_gradients_of_mapped_functions() -> None:
    import jax

    layer, many = built(), sample((3, 2, 5, 6, 7, 4))
    of_y = sample(tuple(layer.compute_output_shape(many.shape[1:])), seed=8)
    kernels = jax.numpy.stack([layer.kernel.value * factor for factor in (1.0, 0.5, -2.0)])

    def loss(kernel: Any, x: Any) -> Any:
        return (layer.stateless_call([kernel, layer.bias.value], [], x)[0] * of_y).sum()

    of_each = jax.vmap(jax.grad(loss, argnums=(0, 1)))(kernels, many)
    of_all = jax.grad(lambda *given: jax.vmap(loss)(*given).sum(), argnums=(0, 1))(kernels, many)
    of_one_kernel, _ = jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(None, 0))(kernels[0], many)
    for number, x in enumerate(many):
        layer.kernel.assign(kernels[number])
        of_x, of_kernel, _ = expected(layer, x, of_y)
        for found in (of_each, of_all):
            assert relative_error(numpy(found[0][number]), of_kernel) < 1e-5
            assert relative_error(numpy(found[1][number]), of_x) < 1e-5
        assert relative_error(numpy(of_one_kernel[number]), of_kernel) < 1e-5
    assert all_ours()


@not_on_torch
def test_what_needs_no_gradient_has_none_in_compiled_functions() -> None:
    last = built(filters=4, padding="same", shape=(2, 5, 6, 7, 6))
    model = keras.Sequential([keras.Input((5, 6, 7, 4)), built(padding="same"), last])
    model.compile("sgd", "mse")
    x = sample((2, 5, 6, 7, 4))
    model.train_on_batch(x, x)
    # of two layers; the gradient of the first one's input is left out
    assert (counters().ours, counters().keras) == (5, {})


def test_of_no_samples_the_gradients_are_zeros() -> None:
    if BACKEND == "torch":
        pytest.skip("torch's own code says what becomes of these")
    layer, x = built(), np.zeros((0, 5, 6, 7, 4), "float32")
    of_x, *of_weights = gradients(layer, x, np.zeros((0, 3, 4, 5, 6), "float32"))
    assert of_x.shape == x.shape
    for found, weight in zip(of_weights, layer.weights, strict=True):
        np.testing.assert_array_equal(found, np.zeros(weight.shape, "float32"))


def test_a_frozen_layer_has_the_gradient_of_its_input() -> None:
    layer, x = built(), sample(keras_cases.input_shape({}))
    layer.trainable = False
    of_y = sample(tuple(layer.compute_output_shape(x.shape)), seed=8)
    (found,) = gradients(layer, x, of_y)
    assert relative_error(found, expected(layer, x, of_y)[0]) < 1e-5
