"""Convolutions of arrays, for backends that have no way to register operators with gradients, shapes and devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from tvm_conv3d.functional import convolution, pooled_convolution
from tvm_conv3d.functional.arguments import ConvArguments, Problem
from tvm_conv3d.keras.backends.protocol import Convolution, Norm
from tvm_conv3d.runtime import interchange, kept_weights
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import DTYPES, Triple
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.support.tally import Tally

#: Calls that are kept at hand, told apart by shapes, types and arguments.
MAX_CALLS = 4096

TALLY = process.keep("keras: convolutions of arrays", Tally())

EXECUTOR = process.keep("keras: executor", Executor(most_specs=MAX_CALLS))
_problems: Recent[Any, Problem] = process.keep("keras: checked calls", Recent(MAX_CALLS))


def arguments_of(convolution: Convolution) -> ConvArguments:
    """The same arguments in the form of the functional core."""
    return ConvArguments(
        convolution.strides,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.data_format,
        convolution.post_ops,
    )


def compute(
    arguments: ConvArguments,
    source: interchange.Source,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    place: int | None = None,
) -> Any:
    """The convolution of a source in the CPU's memory, counted, as what the source came in.

    Args:
        arguments: of the convolution.
        source: the input, of one of :data:`tvm_conv3d.spec.DTYPES`.
        kernel: (kernel depth, height, width, channels / groups, filters), of the same type.
        bias: (filters,), or None.
        place: of weights in training, whose content before this is not expected again; None where it is.

    Raises:
        ValueError: shapes do not fit together, or there is no room for one window.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    problem, weights = _prepared(arguments, source.shape, kernel, bias, place)
    result = convolution.compute(EXECUTOR, problem, source, weights)
    TALLY.count_ours()
    return result


def maxima(
    arguments: ConvArguments,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    window: Triple,
    place: int | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The maxima of windows of a convolution, their cells, and the shape that they are taken of, counted.

    Args:
        arguments: of the convolution, of channels_last.
        x: the input, of a type that :func:`tvm_conv3d.functional.training.takes` takes.
        kernel, bias, place: as of :func:`compute`.
        window: depth, height and width in cells.

    Raises:
        As :func:`compute`.
    """
    problem, weights = _prepared(arguments, x.shape, kernel, bias, place)
    found = pooled_convolution.maxima(EXECUTOR, problem.spec, x, weights, window)
    TALLY.count_ours()
    return *found, problem.spec.output_shape


def _prepared(
    arguments: ConvArguments, shape: tuple[int, ...], kernel: np.ndarray, bias: np.ndarray | None, place: int | None
) -> tuple[Problem, Weights]:
    """What is computed, and the weights."""
    key = (arguments, shape, kernel.shape, kernel.dtype, bias is not None)
    problem = _problems.get(key)
    if problem is None:
        problem = arguments.problem(shape, kernel.shape, kernel.dtype.name, None if bias is None else bias.shape)
        _problems.put(key, problem)
    use = replace(arguments, post_ops=())
    weights = kept_weights.STORE.get(kernel, bias, problem.spec.dtype, use)
    if place is not None:
        kept_weights.STORE.trained((place, use), weights)
    return problem, weights


def why_keras(x: Any, kernel: Any, bias: Any) -> str | None:
    """Why tensors of these shapes and types are left to the backend's own code; what is wrong is for it to say."""
    types = [tensor.dtype.name for tensor in (x, kernel, bias) if tensor is not None]
    if types[0] not in DTYPES:
        return f"numbers of type {types[0]}"
    if len(set(types)) > 1:
        return f"input, kernel and bias of types {', '.join(types)}"
    return None if len(x.shape) == 5 else f"an input of {len(x.shape)} axes"


def folded(kernel: Any, bias: Any, norm: Norm | None) -> tuple[Any, Any]:
    """Weights that compute a batch norm, too, by the backend's operations: gradients and traces hold them.

    Types of 16 bits are folded in float32 and rounded once.
    """
    if norm is None:
        return kernel, bias
    ops, dtype = keras.ops, kernel.dtype
    wide = "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
    mean, variance = ops.cast(norm.mean, wide), ops.cast(norm.variance, wide)
    gamma, beta = (None if each is None else ops.cast(each, wide) for each in (norm.gamma, norm.beta))
    scale = ops.rsqrt(variance + norm.epsilon) if gamma is None else gamma * ops.rsqrt(variance + norm.epsilon)
    moved = (-mean if bias is None else ops.cast(bias, wide) - mean) * scale
    moved = moved if beta is None else moved + beta
    return ops.cast(ops.cast(kernel, wide) * scale, dtype), ops.cast(moved, dtype)


def by_keras(convolution: Convolution, x: Any, kernel: Any) -> Any:
    """The convolution alone, by the backend's own code: what gradients that there is no plan for come from."""
    return keras.ops.conv(
        x,
        kernel,
        strides=convolution.strides,
        padding=convolution.padding,
        data_format=convolution.data_format,
        dilation_rate=convolution.dilation,
    )
