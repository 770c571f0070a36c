"""Gradients of convolutions of arrays, as `arrays` has the convolutions themselves.

A convolution is linear in its input and its kernel, so each gradient is linear in both of its arrays, too, and derives
by the other one and the convolution: gradients of any order are these three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_conv3d.functional import convolution, gradients
from tvm_conv3d.functional.arguments import ConvArguments, Problem, problem_of
from tvm_conv3d.functional.gradient_arguments import data_gradient_of, weight_gradient_of
from tvm_conv3d.keras.backends.arrays import EXECUTOR, MAX_CALLS, TALLY
from tvm_conv3d.runtime import interchange, kept_weights
from tvm_conv3d.spec import CHANNELS_LAST, DATA_GRADIENT, WEIGHT_GRADIENT, Conv3DSpec
from tvm_conv3d.support import process
from tvm_conv3d.support.lru import Recent

_calls: Recent[Any, Problem | str] = process.keep("keras: checked calls of gradients", Recent(MAX_CALLS))


@dataclass(frozen=True)
class Kind:
    """What a gradient is taken of.

    Attributes:
        arguments: of the convolution, without post-ops.
        input_shape: of the convolution.
        kernel_shape: (kernel depth, height, width, channels / groups, filters).
        dtype: of all arrays, one of :data:`tvm_conv3d.spec.DTYPES`.
        bias: whether the gradient of a bias is computed beside that of the kernel.
    """

    arguments: ConvArguments
    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    dtype: str
    bias: bool = False

    @property
    def forward(self) -> Conv3DSpec:
        """The convolution, as a problem.

        Raises:
            ValueError: the shapes do not fit together.
        """
        return self.arguments.problem(self.input_shape, self.kernel_shape, self.dtype, None).spec


def kind_of(arguments: ConvArguments, input_shape: Any, kernel_shape: Any, dtype: str, bias: bool = False) -> Kind:
    """The kind of a convolution's gradients; post-ops are left out."""
    return Kind(replace(arguments, post_ops=()), tuple(input_shape), tuple(kernel_shape), dtype, bias)


def why_keras_data(kind: Kind) -> str | None:
    """Why the gradient of the input is left to the backend's own code."""
    problem = _problem(kind, data_gradient_of)
    return f"data gradient: {problem}" if isinstance(problem, str) else None


def why_keras_weight(kind: Kind) -> str | None:
    """Why the gradient of the kernel is left to the backend's own code."""
    problem = _problem(kind, weight_gradient_of)
    return f"weight gradient: {problem}" if isinstance(problem, str) else None


def data_gradient(kind: Kind, gradient: interchange.Source, kernel: np.ndarray, place: int | None) -> Any:
    """The gradient of the input, counted, as what that of the output came in.

    Args:
        kind: for which :func:`why_keras_data` is None.
        gradient: of the convolution's output, in the CPU's memory.
        kernel: the convolution's.
        place: of weights in training, as of :func:`tvm_conv3d.keras.backends.arrays.compute`.

    Raises:
        ValueError: shapes are not the kind's.
        MemoryError: there is none for the result, the packed weights or the intermediates.
    """
    problem = _ours(_problem(kind, data_gradient_of))
    use = (DATA_GRADIENT, kind.arguments)
    weights = kept_weights.STORE.get(kernel, None, kind.dtype, use)
    if place is not None:
        kept_weights.STORE.trained((place, use), weights)
    result = convolution.compute(EXECUTOR, problem, gradient, weights)
    TALLY.count_ours()
    return result


def weight_gradient(kind: Kind, source: interchange.Source, gradient: interchange.Source) -> list[np.ndarray]:
    """The gradient of the kernel, and of the bias where the kind has one, in fresh arrays, counted.

    Args:
        kind: for which :func:`why_keras_weight` is None.
        source: the convolution's input, in the CPU's memory.
        gradient: of its output, likewise.

    Raises:
        ValueError: shapes are not the kind's.
        MemoryError: there is none for the result or the intermediates.
    """
    found = gradients.weight_gradient(EXECUTOR, _ours(_problem(kind, weight_gradient_of)), source, gradient)
    TALLY.count_ours()
    return [interchange.prepare(each, kind.dtype) for each in found if each is not None]


def _ours(problem: Problem | str) -> Problem:
    if isinstance(problem, str):
        raise ValueError(f"This gradient is the backend's to compute: {problem}")
    return problem


def _problem(kind: Kind, gradient_of: Callable[[Conv3DSpec], Conv3DSpec]) -> Problem | str:
    """The problem of a gradient of a convolution's spec, or why the backend's own code is asked."""
    problem = _calls.get((kind, gradient_of))
    if problem is None:
        spec = gradient_of(kind.forward)
        problem = _planned(replace(spec, bias=kind.bias) if spec.direction == WEIGHT_GRADIENT else spec)
        _calls.put((kind, gradient_of), problem)
    return problem


def _planned(spec: Conv3DSpec) -> Problem | str:
    """The problem of a spec that there is a plan for, else why there is none; functions may be traced after this."""
    if spec.empty:
        return problem_of(spec)
    try:
        # what serves kernels of any values; others have more to choose from
        EXECUTOR.plan_for(spec, structured=spec.direction == DATA_GRADIENT)
    except ValueError as error:
        # no algorithm takes it within the limit of workspace, say
        return str(error)
    return problem_of(spec)


def axes_of_positions(data_format: str) -> tuple[int, ...]:
    """Axes that the gradient of the output is summed over for that of the bias."""
    return (0, 1, 2, 3) if data_format == CHANNELS_LAST else (0, 2, 3, 4)
