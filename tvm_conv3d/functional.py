"""Convolutions as functions: the core that every door (layers, modules of other frameworks) calls, and its public form.

A door that knows when its weights change hands them to :func:`compute` under a version of its own. :func:`conv3d` has
none: it tells weights by their content.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d.conv_arguments import ConvArguments, Problem
from tvm_conv3d.engine import planner
from tvm_conv3d.runtime import interchange, kept_weights, tracing
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.gpu import Weights, to_host
from tvm_conv3d.spec import CHANNELS_LAST, DTYPES
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.support.lru import Recent

#: Calls that the process keeps at hand, told apart by shapes, types and arguments; executors, by their options.
_MAX_CALLS, _MAX_EXECUTORS = 4096, 32


class _Prepared(NamedTuple):
    """All that calls with the same arguments, and arrays of the same shapes and types, need.

    Attributes:
        executor: of the options.
        problem: what is computed.
        use: what all calls have in common that may share packed weights.
    """

    executor: Executor
    problem: Problem
    use: ConvArguments


_calls: Recent[Any, _Prepared] = Recent(_MAX_CALLS)
_executors: Recent[Any, Executor] = Recent(_MAX_EXECUTORS)


def compute(executor: Executor, problem: Problem, source: interchange.Source, weights: Weights) -> Any:
    """The convolution of a door's input, as what the input came in.

    An input of channels_first whose memory has the channels innermost is read as it lies there, and so is the result.

    Args:
        executor: of the door.
        problem: what is computed.
        source: the input, before it is cropped.
        weights: in the spec's dtype, with a version.

    Raises:
        As :meth:`tvm_conv3d.runtime.executor.Executor.convolve`.
    """
    if problem.crop is not None:
        source = interchange.cropped(source, problem.crop)
    if problem.inside is not None:
        inside = interchange.channels_inside(source)
        if inside is not None:
            return executor.convolve(problem.inside, inside, weights)
    return executor.convolve(problem.spec, source, weights)


@functools.partial(tracing.untraced, what="tvm_conv3d.conv3d")
def conv3d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: Any = 1,
    data_format: Any = CHANNELS_LAST,
    post_ops: Any = (),
    residual: Any = None,
    target: Any = None,
    accuracy: str = "default",
    workspace_limit: int = planner.DEFAULT_LIMIT,
) -> Any:
    """3-D convolution of any array or tensor: `post_ops(convolution(x, w) + b)`.

    Arrays of NumPy and tensors of any library that speaks DLPack may be mixed. The result is of the kind and type of
    `x`; integers and booleans are computed in the floating type of `w`, else in float32. Half types are summed up in
    float32. Weights are told by their content (:mod:`tvm_conv3d.runtime.kept_weights`): changed ones are seen.

    Args:
        x: (batch, depth, height, width, channels), or (batch, channels, depth, height, width) with
            `data_format="channels_first"`. Where its memory has the channels innermost (`torch.channels_last_3d`), it
            is read without a copy, too, and the result's memory is of that order, as torch's is.
        w: (kernel depth, kernel height, kernel width, channels / groups, filters), of any strides; torch's weights are
            passed as `w.permute(2, 3, 4, 1, 0)`. From a GPU's memory, weights are copied to the CPU's at each call.
        b: (filters,), or None.
        strides, dilation: an integer, or three for depth, height and width: steps of the window, distances of taps.
        padding: "valid" for none; "same" for an output of ceil(size / stride), the odd zero behind; or zeros around the
            input: an integer, three, or three pairs (before, after). Negative ones crop.
        groups: the channels and filters are split into so many independent convolutions.
        data_format: "channels_last" or "channels_first"; None for Keras's setting.
        post_ops: () or one activation, such as ("relu",): a name of :data:`tvm_conv3d.spec.FUSED_ACTIVATIONS`.
        residual: None; not taken yet.
        target, accuracy, workspace_limit: as of :class:`tvm_conv3d.Conv3D`.

    Returns:
        A new array or tensor: `x` with `filters` channels and, along each spatial axis, a size of
        floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1.

    Raises:
        ValueError: an argument is not what it may be, shapes do not fit together, or memory is of another device.
        TypeError: something is no array or tensor, or holds no real numbers, as what a tool traces with.
        RuntimeError: a gradient would be lost, or a tool that records operations would miss this one.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    if residual is not None:
        raise ValueError("`residual` is not taken yet: it must be None. Add it to the result.")
    arguments = (strides, padding, dilation, groups, data_format, post_ops)
    return _convolve(x, w, b, arguments, (target, accuracy, workspace_limit))


def _convolve(x: Any, w: Any, b: Any, arguments: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """The convolution by arguments as :meth:`ConvArguments.of` takes them, and options of an executor."""
    source, kernel = _source("x", x), _on_host("w", w)
    bias = None if b is None else _on_host("b", b)
    arrays = (_kind(source), (kernel.shape, kernel.dtype), None if bias is None else (bias.shape, bias.dtype))
    key = (arrays, arguments, options)
    try:
        prepared = _calls.get(key)
    except TypeError:
        key = _hashable(key)
        prepared = _calls.get(key)
    if prepared is None:
        prepared = _prepare(arrays, arguments, options)
        _calls.put(key, prepared)
    weights = kept_weights.STORE.get(kernel, bias, prepared.problem.spec.dtype, prepared.use)
    return compute(prepared.executor, prepared.problem, source, weights)


def _source(name: str, value: Any) -> interchange.Source:
    """An argument as a source, of which a CPU's array is at hand.

    Raises:
        TypeError, ValueError, RuntimeError: it can't be taken.
    """
    if type(value) is np.ndarray:
        # in loops of a tenth of a millisecond nothing is asked in vain
        return interchange.wrap(value)
    tracing.check(value, "conv3d", tracing.FUNCTION)
    tracing.check_gradient(value, f"`{name}`", "conv3d", name)
    try:
        source = interchange.wrap(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` can't be taken. {error}") from error
    if source.gpu is not None:
        return source
    array = source.numpy()
    return interchange.Source(source.shape, lambda: array, source.restore)


def _on_host(name: str, value: Any) -> np.ndarray:
    if type(value) is np.ndarray:
        return value
    source = _source(name, value)
    return source.numpy() if source.gpu is None else to_host(source.gpu)


def _kind(source: interchange.Source) -> tuple[tuple[int, ...], Any]:
    """Shape and type of a source."""
    return source.shape, source.numpy().dtype if source.gpu is None else numpy_dtype(source.gpu.dtype)


def _hashable(value: Any) -> Any:
    """A key that tells values apart which can't be keys themselves: lists, arrays, dicts."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def _prepare(arrays: Any, arguments: Any, options: Any) -> _Prepared:
    """Checks a call of a kind that is not at hand.

    Raises:
        ValueError, TypeError: it can't be done.
    """
    (shape, dtype), (kernel_shape, kernel_dtype), bias = arrays
    for name, kind in (("x", dtype), ("w", kernel_dtype), ("b", bias and bias[1])):
        if kind is not None:
            interchange.check_real(kind, f"`{name}`")
    use = ConvArguments.of(*arguments)
    found = [kind.name for kind in (dtype, kernel_dtype) if kind.name in DTYPES]
    problem = use.problem(shape, kernel_shape, found[0] if found else "float32", bias and bias[0])
    return _Prepared(_executor(options), problem, use)


def _executor(options: tuple[Any, ...]) -> Executor:
    """The executor of all calls with these options.

    Raises:
        ValueError: one of them is not what it may be.
    """
    key = _hashable(options)
    found = _executors.get(key)
    if found is None:
        target, accuracy, workspace_limit = options
        found = Executor(target, accuracy, workspace_limit, _MAX_CALLS)
        _executors.put(key, found)
    return found
