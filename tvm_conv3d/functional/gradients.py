"""Gradients of a convolution as functions of arrays: of its input, of its weights and of its bias."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from tvm_conv3d.engine import planner
from tvm_conv3d.functional import convolution
from tvm_conv3d.functional.arguments import Problem
from tvm_conv3d.functional.gradient_arguments import WeightGradientArguments
from tvm_conv3d.runtime import interchange, tracing
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent


class _Prepared(NamedTuple):
    """All that calls with the same arguments, and arrays of the same shapes and types, need."""

    executor: Executor
    problem: Problem


_calls: Recent[Any, _Prepared] = process.keep("gradients: checked calls", Recent(convolution.MAX_CALLS))


def weight_gradient(
    executor: Executor, problem: Problem, source: interchange.Source, gradient: interchange.Source
) -> tuple[Any, Any | None]:
    """The gradient of the weights, and of the bias where the problem has one, of a door's arrays.

    Where one of them has the channels innermost in memory, both are read so: the other one is copied.

    Args:
        executor: of the door.
        problem: what is computed, a gradient of weights.
        source: its input.
        gradient: that of the output.

    Raises:
        As :meth:`tvm_conv3d.runtime.executor.Executor.weight_gradient`.
    """
    if problem.inside is not None and any(map(interchange.channels_inside, (source, gradient))):
        last = map(interchange.with_channels_last, (source, gradient))
        return executor.weight_gradient(problem.inside, *last)
    return executor.weight_gradient(problem.spec, source, gradient)


@functools.partial(tracing.untraced, what="tvm_conv3d.conv3d_data_gradient")
def conv3d_data_gradient(
    gradient: Any,
    w: Any,
    input_size: Any,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: Any = 1,
    data_format: Any = CHANNELS_LAST,
    target: Any = None,
    accuracy: str = "default",
    workspace_limit: int = planner.DEFAULT_LIMIT,
) -> Any:
    """The gradient of the input of :func:`tvm_conv3d.conv3d`, from that of its output.

    It is a transposed convolution. With strides of 1 all algorithms of convolutions serve, with others it is computed
    by phases (:mod:`tvm_conv3d.compute.shared.transposed`). Arrays and weights are taken as by
    :func:`tvm_conv3d.conv3d`; half types are summed up in float32.

    Args:
        gradient: that of the convolution's output, of its shape: (batch, depth, height, width, filters), or the
            channels first, of any strides.
        w: the convolution's weights: (kernel depth, kernel height, kernel width, channels / groups, filters).
        input_size: depth, height and width of the convolution's input: three integers of at least 0, or one for all.
        strides, padding, dilation, groups, data_format: the convolution's.
        target, accuracy, workspace_limit: as of :func:`tvm_conv3d.conv3d`.

    Returns:
        A new array or tensor of the convolution's input's shape, of the kind and type of `gradient`. Cells that no
        window reads are 0.

    Raises:
        ValueError: as :func:`tvm_conv3d.conv3d`, or an input of `input_size` has an output of another size.
        TypeError, RuntimeError, MemoryError: as :func:`tvm_conv3d.conv3d`.

    Example:

    >>> import numpy as np
    >>> gradient, w = np.ones((1, 2, 2, 2, 5), "float32"), np.ones((3, 3, 3, 4, 5), "float32")
    >>> conv3d_data_gradient(gradient, w, (5, 5, 6), strides=2).shape
    (1, 5, 5, 6, 4)
    """
    arguments = (strides, padding, dilation, groups, data_format, (), input_size)
    return convolution.convolved(
        "conv3d_data_gradient", (gradient, w, None, None), arguments, (target, accuracy, workspace_limit)
    )


@functools.partial(tracing.untraced, what="tvm_conv3d.conv3d_weight_gradient")
def conv3d_weight_gradient(
    x: Any,
    gradient: Any,
    kernel_size: Any,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: Any = 1,
    data_format: Any = CHANNELS_LAST,
    bias: bool = False,
    target: Any = None,
    accuracy: str = "default",
    workspace_limit: int = planner.DEFAULT_LIMIT,
) -> Any:
    """The gradient of the weights of :func:`tvm_conv3d.conv3d`, and of its bias, from that of its output.

    Products are summed up in float32, in float64 where arrays are, in parts of some hundred positions, in an order that
    does not depend on which thread does what. They are those of the definition, with the zeros of the padding: NaN and
    infinity in `gradient` reach all weights of their filter, those in `x` the taps of all filters that read them.

    Args:
        x: the convolution's input, of any strides and library, in the CPU's memory or a GPU's.
        gradient: that of its output, likewise, in the same memory.
        kernel_size: depth, height and width of the weights: three integers of at least 1, or one for all.
        strides, padding, dilation, groups, data_format: the convolution's.
        bias: whether the gradient of the bias is computed as well.
        target, accuracy, workspace_limit: as of :func:`tvm_conv3d.conv3d`.

    Returns:
        A new array or tensor of the kind and type of `x`, (kernel depth, kernel height, kernel width, channels /
        groups, filters), as the weights are; with `bias` a pair of it and one of (filters,).

    Raises:
        ValueError: as :func:`tvm_conv3d.conv3d`, or `gradient` is not of the output's shape or where `x` is.
        TypeError, RuntimeError, MemoryError: as :func:`tvm_conv3d.conv3d`.

    Example:

    >>> import numpy as np
    >>> x, gradient = np.ones((1, 5, 5, 6, 4), "float32"), np.ones((1, 2, 2, 2, 5), "float32")
    >>> conv3d_weight_gradient(x, gradient, 3, strides=2).shape
    (3, 3, 3, 4, 5)
    """
    name = "conv3d_weight_gradient"
    source, outer = convolution.source_of(name, "x", x), convolution.source_of(name, "gradient", gradient)
    kinds = convolution.kind_of(source), convolution.kind_of(outer)
    arguments = (strides, padding, dilation, groups, data_format, (), kernel_size, bias)
    options = (target, accuracy, workspace_limit)
    key = (kinds, arguments, options)
    prepared = convolution.at_hand(_calls, key, lambda: _prepare(kinds, arguments, options))
    of_weights, of_bias = weight_gradient(prepared.executor, prepared.problem, source, outer)
    restored = source.restore(of_weights)
    return restored if of_bias is None else (restored, source.restore(of_bias))


def _prepare(kinds: Any, arguments: Any, options: Any) -> _Prepared:
    """Checks a call of a kind that is not at hand.

    Raises:
        ValueError, TypeError: it can't be done.
    """
    (shape, dtype), (outer_shape, outer_dtype) = kinds
    interchange.check_real(dtype, "`x`")
    interchange.check_real(outer_dtype, "`gradient`")
    use = WeightGradientArguments.of(*arguments)
    problem = use.problem_of_both(shape, outer_shape, convolution.computed_in(dtype, outer_dtype))
    return _Prepared(convolution.executor_of(options), problem)
