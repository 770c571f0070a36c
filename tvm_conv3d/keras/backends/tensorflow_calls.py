"""Functions of arrays as steps of what TensorFlow traces, and eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def prunable(now: Callable[..., Any], given: Sequence[Any], kinds: Sequence[tf.TensorSpec]) -> list[Any]:
    """Results now, or, in a function that is traced, whenever that is called and one is needed for something.

    `tf.py_function` would be computed in vain, as the gradient of a network's input, and takes a millisecond more.

    Args:
        now: takes what is given, as eager tensors or as arrays of NumPy's, and gives a list of as many results.
        given: tensors, the first of which tells whether a function is traced.
        kinds: shapes, as far as they are known, and types of the results.
    """
    if not tf.is_symbolic_tensor(given[0]):
        found: list[Any] = now(*given)
        return found
    types = [kind.dtype for kind in kinds]
    found = tf.numpy_function(now, given, types, stateful=False, name="tvm_conv3d")
    for each, kind in zip(found, kinds, strict=True):
        each.set_shape(kind.shape)
    return found
