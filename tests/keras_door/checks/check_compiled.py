"""The layer in what each backend makes of functions: compiled, mapped, derived, exported."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_cases
from keras_door import BACKEND, all_ours, built, compiled, expected, numpy
from layer_samples import sample
from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.keras import counters, reset_counters
from tvm_conv3d.reference.oracle import relative_error

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="a tool of another backend")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="a tool of another backend")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="a tool of another backend")


@pytest.mark.parametrize("arguments", keras_cases.CALLS, ids=str)
def test_compiled_functions_call_the_kernel_each_time(arguments: dict[str, Any]) -> None:
    layer, x = built(**arguments), sample(keras_cases.input_shape(arguments))
    function = compiled(layer)
    given = keras.ops.convert_to_tensor(x)
    function(given)
    reset_counters()
    for _ in range(3):
        y = function(given)
    assert relative_error(numpy(y), expected(layer, x)) < 1e-5
    assert (counters().ours, counters().keras) == (3, {})


def test_calls_from_several_threads() -> None:
    layer, x = built(activation="relu"), sample(keras_cases.input_shape({}))
    # Keras's own state is each thread's: Dynamo compiles for each of them
    function = layer if BACKEND == "torch" else compiled(layer)
    right, found = expected(layer, x), []
    given = keras.ops.convert_to_tensor(x)
    function(given)
    threads = [threading.Thread(target=lambda: found.append(numpy(function(given)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(relative_error(y, right) < 1e-5 for y in found)


def test_results_are_not_shared() -> None:
    layer, x = built(shape=(1, 16, 32, 32, 8)), sample((1, 16, 32, 32, 8))
    first = numpy(layer(x)).copy()
    kept = layer(x)
    for seed in range(3):
        layer(sample((1, 16, 32, 32, 8), seed=seed))
    np.testing.assert_array_equal(numpy(kept), first)


@on_tensorflow
def test_sizes_that_are_not_known_when_a_function_is_traced() -> None:
    import tensorflow as tf

    layer = built(padding="same", strides=2)
    function = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, None, 4))])
    assert function.get_concrete_function().output_shapes.as_list() == [None, None, None, None, 6]
    for shape in ((1, 4, 5, 6, 4), (2, 7, 3, 5, 4)):
        x = sample(shape)
        assert relative_error(numpy(function(x)), expected(layer, x)) < 1e-5
    assert all_ours()


@on_tensorflow
def test_xla_of_tensorflow_has_kerass_own_convolution_and_it_is_counted() -> None:
    import tensorflow as tf

    layer, x = built(), sample(keras_cases.input_shape({}))
    y = tf.function(layer, jit_compile=True)(x)
    assert relative_error(numpy(y), expected(layer, x)) < 1e-5
    assert counters().ours == 0
    assert list(counters().keras) == ["a function that is compiled by XLA (jit_compile=True)"]


@on_tensorflow
def test_derivatives_of_derivatives() -> None:
    import tensorflow as tf

    layer, x = built(activation="tanh", kernel_size=2), tf.constant(sample((1, 3, 3, 3, 4)))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(layer(x))
        slope = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
    second = outer.gradient(slope, x)
    plain = built(keras.layers.Conv3D, activation="tanh", kernel_size=2)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(plain(x))
        slope = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
    np.testing.assert_allclose(numpy(second), numpy(outer.gradient(slope, x)), rtol=1e-4, atol=1e-4)


@on_tensorflow
def test_a_saved_model_runs_without_this_package(tmp_path: Path) -> None:
    import tensorflow as tf

    model = keras.Sequential([keras.Input((5, 6, 7, 4)), built()])
    model.export(tmp_path / "exported", verbose=False)
    assert list(counters().keras) == ["an export: what it writes must run without this package"]
    x = sample((2, 5, 6, 7, 4))
    loaded = tf.saved_model.load(tmp_path / "exported")
    y = loaded.serve(x)
    assert relative_error(numpy(y), expected(model.layers[0], x)) < 1e-5


@on_jax
def test_vmap_and_derivatives_of_both_modes() -> None:
    import jax

    layer, x = built(activation="tanh"), jax.numpy.asarray(sample((3, 2, 5, 6, 7, 4)))
    mapped = jax.vmap(layer)(x)
    for each, y in zip(x, mapped, strict=True):
        assert relative_error(numpy(y), expected(layer, numpy(each))) < 1e-5
    direction = jax.numpy.asarray(sample((2, 5, 6, 7, 4), seed=3))
    y, along = jax.jvp(layer, (x[0],), (direction,))
    plain = built(keras.layers.Conv3D, activation="tanh")
    np.testing.assert_allclose(along, jax.jvp(plain, (x[0],), (direction,))[1], rtol=1e-4, atol=1e-4)
    assert relative_error(numpy(y), expected(layer, numpy(x[0]))) < 1e-5
    assert all_ours()


@on_jax
def test_errors_in_a_compiled_function_are_told_in_words() -> None:
    from tvm_conv3d.keras.backends import jax as backend

    with pytest.raises(Exception, match=r"ValueError: `w` must be .kernel depth"):
        backend._convolve(
            backend.Call(
                None, backend.Kernel(ConvArguments(), None), (1, 3, 3, 3, 2), (1, 1, 1, 3, 1), (1, 1, 1, 1, 1)
            ),
            np.ones((1, 3, 3, 3, 2), "float32"),
            np.ones((1, 1, 1, 3, 1), "float32"),
            None,
        )


@on_torch
def test_sizes_may_change_in_compiled_functions() -> None:
    import torch

    torch._dynamo.reset()
    layer = built(padding="same", activation="relu")
    function = torch.compile(layer, dynamic=True, backend="aot_eager", fullgraph=True)
    for shape in ((1, 4, 5, 6, 4), (2, 7, 3, 5, 4)):
        x = sample(shape)
        with torch.no_grad():
            assert relative_error(numpy(function(torch.tensor(x))), expected(layer, x)) < 1e-5
    assert all_ours()
