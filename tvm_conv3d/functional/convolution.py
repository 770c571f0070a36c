"""Convolutions as functions: the core that every door (layers, modules of other frameworks) calls, and its public form.

A door that knows when its weights change hands them to :func:`compute` under a version of its own. :func:`conv3d` has
none: it tells weights by their content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tvm_conv3d.engine import planner
from tvm_conv3d.functional.arguments import ConvArguments, Problem, check_residual
from tvm_conv3d.functional.gradient_arguments import DataGradientArguments
from tvm_conv3d.functional.transposed_arguments import TransposeArguments
from tvm_conv3d.runtime import interchange, kept_weights, tracing
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_LAST, DTYPES
from tvm_conv3d.support import process
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.support.lru import Recent

_T = TypeVar("_T")

#: Calls that the process keeps at hand, told apart by shapes, types and arguments; executors, by their options.
MAX_CALLS, _MAX_EXECUTORS = 4096, 32


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


class _Function(NamedTuple):
    """A public function: what takes its arguments, and the name of its first one."""

    arguments: type[ConvArguments]
    first: str = "x"


#: By name.
_FUNCTIONS = {
    "conv3d": _Function(ConvArguments),
    "conv3d_transpose": _Function(TransposeArguments),
    "conv3d_data_gradient": _Function(DataGradientArguments, "gradient"),
}

_calls: Recent[Any, _Prepared] = process.keep("convolution: checked calls", Recent(MAX_CALLS))
_executors: Recent[Any, Executor] = process.keep("convolution: executors", Recent(_MAX_EXECUTORS))


def compute(
    executor: Executor,
    problem: Problem,
    source: interchange.Source,
    weights: Weights,
    residual: interchange.Source | None = None,
) -> Any:
    """The convolution of a door's input, as what the input came in.

    An input of channels_first whose memory has the channels innermost is read as it lies there, and so is the result.

    Args:
        executor: of the door.
        problem: what is computed.
        source: the input.
        weights: in the spec's dtype, with a version.
        residual: what the spec's post-ops add, of the result's shape; None where they add nothing.

    Raises:
        As :meth:`tvm_conv3d.runtime.executor.Executor.convolve`.
    """
    if problem.inside is not None:
        inside = interchange.channels_inside(source)
        if inside is not None:
            added = None if residual is None else interchange.with_channels_last(residual)
            return executor.convolve(problem.inside, inside, weights, added)
    return executor.convolve(problem.spec, source, weights, residual)


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
        data_format: "channels_last" or "channels_first".
        post_ops: what becomes of the sums, step by step, such as ("add", "leaky_relu:0.01"): names of
            :data:`tvm_conv3d.spec.post_ops.FUSED_ACTIVATIONS`, some with parameters, and "add", at most once.
        residual: what "add" adds, of the result's shape in `data_format`, any strides and any real type; cast to the
            type that is computed in. It is read without a copy where it has that type and the order of the result's
            memory. None where `post_ops` has no "add".
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
    arguments = (strides, padding, dilation, groups, data_format, post_ops)
    return convolved("conv3d", (x, w, b, residual), arguments, (target, accuracy, workspace_limit))


@functools.partial(tracing.untraced, what="tvm_conv3d.conv3d_transpose")
def conv3d_transpose(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    output_padding: Any = None,
    dilation: Any = 1,
    groups: Any = 1,
    data_format: Any = CHANNELS_LAST,
    post_ops: Any = (),
    residual: Any = None,
    target: Any = None,
    accuracy: str = "default",
    workspace_limit: int = planner.DEFAULT_LIMIT,
) -> Any:
    """Transposed 3-D convolution of any array or tensor: `post_ops(transposed convolution(x, w) + b)`.

    Each cell of `x` adds its products with the kernel to the cells of the result from `cell * stride` on, tap after
    tap: this is the gradient of a convolution's input. Arrays and weights are taken as by :func:`conv3d`.

    Args:
        x: (batch, depth, height, width, channels), or (batch, channels, depth, height, width) with
            `data_format="channels_first"`, of any strides.
        w: (kernel depth, kernel height, kernel width, filters / groups, channels), the order of Keras's
            Conv3DTranspose, of any strides; torch's weights are passed as `w.permute(2, 3, 4, 1, 0)`.
        b: (filters,), or None.
        strides: an integer, or three for depth, height and width: cells of the result between those of `x`.
        padding: "valid" for none; "same" for a result of size * stride, or as Keras has it with `output_padding`; or
            cells that are cut off the result: an integer for all sides, three integers for depth, height and width, or
            three pairs (before, after). Negative ones add cells, which hold the bias.
        output_padding: None for Keras's default, which is 0 where padding is explicit; else an integer of at least 0,
            or three: cells that the result is longer by, at its end.
        dilation: an integer, or three: the distance of the kernel's taps.
        groups: the channels and filters are split into so many independent convolutions.
        data_format: "channels_last" or "channels_first".
        post_ops, residual: as in :func:`conv3d`.
        target, accuracy, workspace_limit: as in :func:`conv3d`.

    Returns:
        A new array or tensor, (batch, depth, height, width, filters), or the channels first as in `x`, with
        (size - 1) * stride + dilation (kernel - 1) + 1 - before - after + output_padding along each spatial axis.

    Raises:
        As :func:`conv3d`.

    Example:

    >>> import numpy as np
    >>> x, w = np.ones((1, 4, 4, 4, 2), "float32"), np.ones((2, 2, 2, 5, 2), "float32")
    >>> conv3d_transpose(x, w, strides=2, post_ops=("relu",)).shape
    (1, 8, 8, 8, 5)
    """
    arguments = (strides, padding, dilation, groups, data_format, post_ops, output_padding)
    return convolved("conv3d_transpose", (x, w, b, residual), arguments, (target, accuracy, workspace_limit))


def convolved(name: str, given: tuple[Any, Any, Any, Any], arguments: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """What the public function `name` computes.

    Args:
        name: one of :data:`_FUNCTIONS`.
        given: input, kernel, bias and residual operand.
        arguments: as `of` of what :data:`_FUNCTIONS` says takes them.
        options: of an executor.

    Raises:
        As :func:`conv3d`.
    """
    x, w, b, added = given
    source, kernel = source_of(name, _FUNCTIONS[name].first, x), _on_host(name, "w", w)
    bias = None if b is None else _on_host(name, "b", b)
    residual = None if added is None else source_of(name, "residual", added)
    arrays = (
        kind_of(source),
        (kernel.shape, kernel.dtype),
        None if bias is None else (bias.shape, bias.dtype),
        None if residual is None else kind_of(residual),
    )
    key = (name, arrays, arguments, options)
    prepared = at_hand(_calls, key, lambda: _prepare(name, arrays, arguments, options))
    weights = kept_weights.STORE.get(kernel, bias, prepared.problem.spec.dtype, prepared.use)
    return compute(prepared.executor, prepared.problem, source, weights, residual)


def source_of(function: str, name: str, value: Any) -> interchange.Source:
    """An argument as a source, of which a CPU's array is at hand.

    Raises:
        TypeError, ValueError, RuntimeError: it can't be taken.
    """
    if type(value) is np.ndarray:
        # in loops of a tenth of a millisecond nothing is asked in vain
        return interchange.wrap(value)
    tracing.check(value, function, tracing.FUNCTION)
    tracing.check_gradient(value, f"`{name}`", function, name)
    try:
        source = interchange.wrap(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}` can't be taken. {error}") from error
    return interchange.at_hand(source)


def _on_host(function: str, name: str, value: Any) -> np.ndarray:
    if type(value) is np.ndarray:
        return value
    return interchange.host_array(source_of(function, name, value))


def kind_of(source: interchange.Source) -> tuple[tuple[int, ...], Any]:
    """Shape and type of a source."""
    return source.shape, source.numpy().dtype if source.gpu is None else numpy_dtype(source.gpu.dtype)


def at_hand(calls: Recent[Any, _T], key: Any, make: Callable[[], _T]) -> _T:
    """What calls of a kind need: from a table, else made and kept there; `key` may hold what can't be one."""
    try:
        found = calls.get(key)
    except TypeError:
        key = _hashable(key)
        found = calls.get(key)
    if found is None:
        found = make()
        calls.put(key, found)
    return found


def _hashable(value: Any) -> Any:
    """A key that tells values apart which can't be keys themselves: lists, arrays, dicts."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def _prepare(function: str, arrays: Any, arguments: Any, options: Any) -> _Prepared:
    """Checks a call of a kind that is not at hand.

    Raises:
        ValueError, TypeError: it can't be done.
    """
    (shape, dtype), (kernel_shape, kernel_dtype), bias, residual = arrays
    public = _FUNCTIONS[function]
    kinds = {public.first: dtype, "w": kernel_dtype, "b": bias and bias[1], "residual": residual and residual[1]}
    for name, kind in kinds.items():
        if kind is not None:
            interchange.check_real(kind, f"`{name}`")
    use = public.arguments.of(*arguments)
    problem = use.problem(shape, kernel_shape, computed_in(dtype, kernel_dtype), bias and bias[0])
    check_residual(problem.spec, residual and residual[0])
    return _Prepared(executor_of(options), problem, use.of_weights)


def computed_in(*dtypes: np.dtype) -> str:
    """The type of a computation with arrays of these types: the first floating one, else float32."""
    return next((dtype.name for dtype in dtypes if dtype.name in DTYPES), "float32")


def executor_of(options: tuple[Any, ...]) -> Executor:
    """The executor of all calls with these options.

    Raises:
        ValueError: one of them is not what it may be.
    """
    key = _hashable(options)
    found = _executors.get(key)
    if found is None:
        target, accuracy, workspace_limit = options
        found = Executor(target, accuracy, workspace_limit, MAX_CALLS)
        _executors.put(key, found)
    return found
