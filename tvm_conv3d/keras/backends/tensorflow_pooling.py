"""Maxima of windows side by side on TensorFlow, with gradients of any order.

Each maximum's cell is noted, and the gradient goes there: TensorFlow's own code looks for it once more.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tvm_conv3d.functional import training
from tvm_conv3d.keras.backends.tensorflow_calls import prunable
from tvm_conv3d.runtime import interchange
from tvm_conv3d.spec import Triple


def maxima(x: Any, window: Triple) -> Any:
    """The maximum of each window.

    Args:
        x: (batch, depth, height, width, channels), of a type that :func:`tvm_conv3d.functional.training.takes` takes.
        window: depth, height and width in cells; a rest of `x` is left out.
    """
    pooled = training.pooled(x.shape, window)
    kinds = tf.TensorSpec(pooled, x.dtype), tf.TensorSpec(pooled, tf.uint8)

    @tf.custom_gradient
    def function(x: Any) -> Any:
        y, cells = prunable(functools.partial(_maxima_now, window), [x], kinds)
        size = tf.shape(x)
        return y, lambda of_y: spread(of_y, cells, size, tf.TensorSpec(x.shape, x.dtype), window)

    return function(x)


def spread(of_y: Any, cells: Any, size: Any, kind: tf.TensorSpec, window: Triple) -> Any:
    """Zeros but in the cells: linear in what lies there."""

    @tf.custom_gradient
    def function(of_y: Any) -> Any:
        (found,) = prunable(functools.partial(_spread_now, window), [of_y, cells, size], [kind])
        return found, lambda outer: pick(outer, cells, window)

    return function(of_y)


def pick(whole: Any, cells: Any, window: Triple) -> Any:
    """What lies in the cells, by TensorFlow's own code: only gradients of gradients ask for it."""
    batch, depth, height, width, channels = training.pooled(tf.unstack(tf.shape(whole)), window)
    kd, kh, kw = window
    parts = whole[:, : depth * kd, : height * kh, : width * kw]
    parts = tf.reshape(parts, [batch, depth, kd, height, kh, width, kw, channels])
    parts = tf.reshape(
        tf.transpose(parts, (0, 1, 3, 5, 7, 2, 4, 6)), [batch, depth, height, width, channels, kd * kh * kw]
    )
    return tf.squeeze(tf.gather(parts, tf.cast(cells, tf.int32)[..., None], batch_dims=5, axis=5), -1)


def _maxima_now(window: Triple, x: Any) -> list[Any]:
    """Of an eager tensor, or of an array of NumPy's."""
    source = interchange.wrap(x)
    return [source.restore(each) for each in training.max_pool_of_any(source.numpy(), window)]


def _spread_now(window: Triple, of_y: Any, cells: Any, size: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    source = interchange.wrap(of_y)
    array, (batch, depth, height, width, channels) = source.numpy(), map(int, size)
    if 0 in array.shape:
        return [source.restore(np.zeros((batch, depth, height, width, channels), array.dtype))]
    return [source.restore(training.max_pool_gradient(array, np.asarray(cells), (depth, height, width), window))]
