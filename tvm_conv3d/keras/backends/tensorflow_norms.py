"""Batch norms on TensorFlow by this package, gradients by TensorFlow's operators.

Keras's own code takes some twenty passes over memory in training, and two with fresh memory in inference.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tvm_conv3d.functional import normalization
from tvm_conv3d.keras.backends.protocol import Norm
from tvm_conv3d.keras.backends.tensorflow_calls import prunable
from tvm_conv3d.runtime import interchange


def of_batch(x: Any, norm: Norm) -> tuple[Any, Any, Any]:
    """The normalized `x`, with the mean and the biased variance of each channel, which are no part of gradients.

    Args:
        x: (batch, depth, height, width, channels) of float32.
        norm: its values, of which mean and variance are not looked at.
    """
    channels = x.shape[-1:]
    given = [tf.ones(channels) if norm.gamma is None else norm.gamma]
    given.append(tf.zeros(channels) if norm.beta is None else norm.beta)
    kinds = [tf.TensorSpec(shape, x.dtype) for shape in (x.shape, channels, channels)]
    found: list[Any] = []

    @tf.custom_gradient
    def function(x: Any, gamma: Any, beta: Any) -> Any:
        y, mean, variance = prunable(functools.partial(_now, norm.epsilon), (x, gamma, beta), kinds)
        found.extend(map(tf.stop_gradient, (mean, variance)))

        def gradient(of_y: Any) -> tuple[Any, Any, Any]:
            # the operator, which has gradients of its own, has four axes
            sizes = tf.shape(x)
            flat = tf.concat([sizes[:1], sizes[1:2] * sizes[2:3], sizes[3:]], 0)
            of_x, of_gamma, of_beta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=tf.reshape(of_y, flat),
                x=tf.reshape(x, flat),
                scale=gamma,
                reserve_space_1=tf.stop_gradient(mean),
                reserve_space_2=tf.stop_gradient(variance),
                reserve_space_3=tf.zeros(0),
                epsilon=norm.epsilon,
            )
            return tf.reshape(of_x, sizes), of_gamma, of_beta

        return y, gradient

    y = function(x, *given)
    return y, *found


def of_moments(x: Any, norm: Norm) -> Any:
    """The normalized `x`, by the norm's mean and variance.

    Args:
        x: (batch, depth, height, width, channels) of float32.
        norm: its values.
    """
    factor = tf.math.rsqrt(norm.variance + norm.epsilon)
    factor = factor if norm.gamma is None else factor * norm.gamma
    summand = -norm.mean * factor
    return _affine(x, factor, summand if norm.beta is None else summand + norm.beta)


@tf.custom_gradient
def _affine(x: Any, factor: Any, summand: Any) -> Any:
    """`x * factor + summand`, which each channel has one of."""
    (y,) = prunable(_affine_now, (x, factor, summand), [tf.TensorSpec(x.shape, x.dtype)])

    def gradient(of_y: Any) -> tuple[Any, Any, Any]:
        axes = (0, 1, 2, 3)
        return of_y * factor, tf.reduce_sum(of_y * x, axes), tf.reduce_sum(of_y, axes)

    return y, gradient


def _affine_now(x: Any, factor: Any, summand: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    source = interchange.wrap(x)
    array, channels = interchange.prepare(source.numpy(), "float32"), x.shape[-1:]
    given = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    found = normalization.normalize(array, 1, 0.0, given=given, weight=np.asarray(factor), bias=np.asarray(summand))
    return [source.restore(found)]


def _now(epsilon: float, x: Any, gamma: Any, beta: Any) -> list[Any]:
    """Of eager tensors, or of arrays of NumPy's."""
    source = interchange.wrap(x)
    array = interchange.prepare(source.numpy(), "float32")
    mean, variance = moments = normalization.channel_moments(array)
    y = normalization.normalize(
        array, 1, epsilon, given=(mean, variance), weight=np.asarray(gamma), bias=np.asarray(beta)
    )
    return [source.restore(each) for each in (y, *moments.astype(np.float32))]
