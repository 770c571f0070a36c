"""Convolutions as functions: the core that every door (layers, modules of other frameworks) calls, and its public form.

A door that knows when its weights change hands them to :func:`compute` under a version of its own. :func:`conv3d` has
none: it tells weights by their content.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d import kept_weights, planner, tensors, tracing
from tvm_conv3d.conv_arguments import ConvArguments, Problem
from tvm_conv3d.cuda.executor import Weights, to_host
from tvm_conv3d.dtypes import numpy_dtype
from tvm_conv3d.recent import Recent
from tvm_conv3d.runtime import Executor
from tvm_conv3d.spec import CHANNELS_LAST, DTYPES

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


def compute(executor: Executor, problem: Problem, source: tensors.Source, weights: Weights) -> Any:
    """The convolution of a door's input, as what the input came in.

    An input of channels_first whose memory has the channels innermost is read as it lies there, and so is the result.

    Args:
        executor: of the door.
        problem: what is computed.
        source: the input, before it is cropped.
        weights: in the spec's dtype, with a version.

    Raises:
        As :meth:`tvm_conv3d.runtime.Executor.convolve`.
    """
    if problem.crop is not None:
        source = tensors.cropped(source, problem.crop)
    if problem.inside is not None:
        inside = tensors.channels_inside(source)
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

    Arrays of NumPy and tensors of any library that speaks DLPack (torch, JAX, TensorFlow, tvm_ffi, ...) may be mixed;
    the result is what `x` is. It is computed in the type of `x`, and `w` and `b` are cast to it; integers and booleans
    are computed in the floating type of `w`, in float32 if it has none. Half types are summed up in float32.

    Weights are told by their content: what a call has packed serves the next one that brings the same values, and
    values that were changed in place are seen. In a GPU's memory they are copied to the CPU's at each call for it.

    Args:
        x: (batch, depth, height, width, channels), or (batch, channels, depth, height, width) with
            `data_format="channels_first"`. Of any strides: what lies in order is read without a copy, as is an `x` of
            channels_first whose memory has the channels innermost (`torch.channels_last_3d`, transposed NumPy arrays);
            the result's memory is then of that order, too, as torch's is.
        w: (kernel depth, kernel height, kernel width, channels / groups, filters), Keras's order, of any strides;
            torch's weights are passed as `w.permute(2, 3, 4, 1, 0)`.
        b: (filters,), or None.
        strides: an integer, or three for depth, height and width: the step of the window.
        padding: "valid" for none; "same" for an output of ceil(size / stride), the odd zero behind; or zeros around the
            input: an integer for all sides, three integers for depth, height and width, or three pairs (before,
            after). Negative ones crop.
        dilation: an integer, or three: the distance of the kernel's taps.
        groups: the channels and filters are split into so many independent convolutions.
        data_format: "channels_last" or "channels_first"; None for Keras's setting.
        post_ops: () or one activation, such as ("relu",): a name of :data:`tvm_conv3d.spec.FUSED_ACTIVATIONS`.
        residual: None; to be added before the activation in a version to come.
        target: the machine to compile for: None for this one (its GPU, where `x` lies there), "cuda" for its GPU, which
            NumPy arrays are copied to and back from, or what :func:`tvm_conv3d.targets.resolve` takes.
        accuracy: when Winograd's algorithm, whose rounding is larger, may be taken: "default" for not where the
            kernel's values carry exact meaning (:mod:`tvm_conv3d.structure`), "strict" for never, "fast" for always.
        workspace_limit: bytes that intermediates may take for each thread.

    Returns:
        A new array or tensor, (batch, depth, height, width, filters), or the channels first as in `x`, with
        floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1 along each spatial axis.

    Raises:
        ValueError: an argument is not what it may be, shapes do not fit together, or memory is of another device.
        TypeError: something is no array or tensor, or holds no real numbers, as what a tool traces with.
        RuntimeError: a gradient would be lost, or a tool that records operations would miss this one.
        MemoryError: there is none for the result, the packed weights or the intermediates.

    Example:

    >>> import numpy as np
    >>> x, w = np.ones((1, 4, 4, 4, 2), "float32"), np.ones((3, 3, 3, 2, 5), "float32")
    >>> conv3d(x, w, padding=1, post_ops=("relu",)).shape
    (1, 4, 4, 4, 5)
    """
    if residual is not None:
        raise ValueError("`residual` is not taken yet: it must be None. Add it to the result.")
    source, kernel = _source("x", x), _on_host("w", w)
    bias = None if b is None else _on_host("b", b)
    arrays = (_kind(source), (kernel.shape, kernel.dtype), None if bias is None else (bias.shape, bias.dtype))
    options = (target, accuracy, workspace_limit)
    arguments = (strides, padding, dilation, groups, data_format, post_ops)
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


def _source(name: str, value: Any) -> tensors.Source:
    """An argument as a source, of which a CPU's array is at hand.

    Raises:
        TypeError, ValueError, RuntimeError: it can't be taken.
    """
    tracing.check(value, "conv3d", tracing.FUNCTION)
    tracing.check_gradient(value, f"`{name}`", "conv3d", name)
    try:
        source = tensors.wrap(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` can't be taken. {error}") from error
    if source.gpu is not None:
        return source
    array = source.numpy()
    return source._replace(numpy=lambda: array)


def _on_host(name: str, value: Any) -> np.ndarray:
    source = _source(name, value)
    return source.numpy() if source.gpu is None else to_host(source.gpu)


def _kind(source: tensors.Source) -> tuple[tuple[int, ...], Any]:
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
            tensors.check_real(kind, f"`{name}`")
    names = ("strides", "padding", "dilation", "groups", "data_format", "post_ops")
    use = ConvArguments.of(**dict(zip(names, arguments, strict=True)))
    found = [kind.name for kind in (dtype, kernel_dtype) if kind.name in DTYPES]
    problem = use.problem(shape, kernel_shape, found[0] if found else "float32", bias and bias[0])
    return _Prepared(_executor(options), problem, use)


def _executor(options: tuple[Any, str, int]) -> Executor:
    """The executor of all calls with these options.

    Raises:
        ValueError: one of them is not what it may be.
    """
    key = _hashable(options)
    found = _executors.get(key)
    if found is None:
        found = Executor(*options, most_specs=_MAX_CALLS)
        _executors.put(key, found)
    return found
