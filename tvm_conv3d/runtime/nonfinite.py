"""Data with NaN and infinity at the speed of Winograd's algorithm, which would spread them over its tiles.

Convolution is linear. Of the data with zeros for what is not finite, Winograd's algorithm computes all outputs whose
windows are finite. The sum of any other window is NaN where it holds a NaN. Else it is infinite where each infinity in
it, times its weight, has the same sign, and NaN otherwise: the products' signs are summed up by a second convolution,
of the infinities' signs by the weights', and must be as many as there are infinities.

What is left are sums that are not finite for finite data, by weights that are not or by overflow: those are computed as
defined.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from tvm_conv3d.compute.shared.canonical import canonicalize, forward_of
from tvm_conv3d.compute.shared.live_taps import drop_dead_taps
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import helper_code, interchange, output_pool, threads
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec
from tvm_conv3d.support.dtypes import numpy_dtype

if TYPE_CHECKING:
    from tvm import IRModule

#: Terms of a window that float32 counts one by one.
_MAX_TERMS = 1 << 24

#: Channels of a group that :mod:`tvm_conv3d.compute.shared.nonfinite` counts.
_MAX_CHANNELS = (1 << 15) - 1

#: Sums of marks that a task makes.
_SUMS = 2048

#: Error of a sum whose terms all agree, in expected relative errors: 4 at most as measured, for 256 channels; 32 if all
#: roundings of 600 channels agreed, too.
_WORST = 32


@dataclass
class Doubts:
    """What calls of one spec leave for the next ones to know; true where there is something.

    Attributes:
        nonfinite: the last data had NaN or infinity.
        overflow: a version of the weights, and the largest magnitude of finite data, whose sums were not finite.
        signs: the weights' signs.
    """

    nonfinite: bool = False
    overflow: tuple[Hashable, float] | None = None
    signs: Weights | None = None

    def __bool__(self) -> bool:
        return self.nonfinite or self.overflow is not None

    def overflows_from(self, weights: Weights) -> float | None:
        """The magnitude from which on the sums of finite data were not finite with these weights, if they were."""
        overflow = self.overflow
        return overflow[1] if overflow is not None and overflow[0] == weights.version else None

    def signs_of(self, weights: Weights) -> Weights:
        """The signs of the weights, without bias."""
        signs = self.signs
        if signs is None or signs.version != weights.version:
            values = np.sign(weights.kernel).astype(np.int8)
            self.signs = signs = Weights(values, None, weights.version, weights.structured, weights.packed)
        return signs


class Operands(NamedTuple):
    """What a convolution reads and writes.

    Attributes:
        out: the output, C-contiguous, of the spec's shape and type.
        x: the input, likewise.
        residual: as `out`, where the spec adds one.
        weights: the weights.
    """

    out: np.ndarray
    x: np.ndarray
    residual: np.ndarray | None
    weights: Weights


class Steps(Protocol):
    """The convolutions that a result is put together of."""

    def fill(self, operands: Operands) -> bool:
        """Fills the output by Winograd's algorithm; False where a sum is not finite."""

    def convolve_signs(self, signs: np.ndarray, weights: Weights) -> np.ndarray:
        """The convolution of an input by some weights, both of -1, 0 and 1, as float32.

        It has no bias and no post-ops; each value is the sum to the nearest whole number.
        """


def fill(operands: Operands, spec: Conv3DSpec, doubts: Doubts, failed: bool, steps: Steps) -> bool:
    """Fills the output with the convolution of data that may hold NaN or infinity.

    Args:
        operands: of the convolution.
        spec: the problem.
        doubts: what earlier calls left, and this one changes.
        failed: whether Winograd's algorithm has failed on the input already.
        steps: the convolutions.

    Returns:
        Whether it is done; otherwise the output is left to the products of the definition.
    """
    out, x, residual, weights = operands
    # of a data gradient, the convolution that computes it, which has no phases where Winograd's algorithm does
    spec = forward_of(spec).spec
    if spec.group_channels > _MAX_CHANNELS:
        return False
    if spec.group_channels * math.prod(spec.kernel) >= _MAX_TERMS:
        return False
    least = doubts.overflows_from(weights)
    if least == 0:
        return False
    clean, marks = _split(spec, x)
    # other threads, with other data, write it too
    doubts.nonfinite = found = bool(marks.any())
    if least is not None and _largest(clean) >= least:
        return False
    if (failed and not found) or not steps.fill(operands._replace(x=clean)):
        # weights that are not finite spoil all data
        doubts.overflow = (weights.version, _largest(clean) if np.isfinite(weights.kernel).all() else 0.0)
        return False
    doubts.overflow = None
    if found:
        marks = _of_windows(spec, marks)
        sums = None
        if ((marks > 0) & (marks < np.inf)).any():
            sums = steps.convolve_signs(_signs(spec, x), doubts.signs_of(weights))
        if residual is None:
            _mend(spec, out, marks, sums, _results(spec, weights.bias))
        else:
            _mend_adding(spec, out, marks, sums, weights.bias, residual)
    return True


def sums_spec(spec: Conv3DSpec) -> Conv3DSpec:
    """The same convolution in float32, without bias and post-ops."""
    return replace(spec, dtype="float32", bias=False, post_ops=())


def sums_are_whole(plan: Plan) -> bool:
    """Whether sums of signs by `plan` tell by rounding whether all terms agree."""
    spec = canonicalize(plan.spec)
    terms = spec.group_channels * math.prod(spec.kernel)
    return plan.exact or _WORST * plan.error_bound * terms < 0.5


def _split(spec: Conv3DSpec, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`x` with zeros for what is not finite, and the marks of its positions: as `x`, with groups for channels."""
    groups, channels = spec.groups, spec.group_channels
    clean = output_pool.empty(x.shape, x.dtype)
    last = spec.data_format == CHANNELS_LAST
    shape = (spec.batch, *spec.size, groups) if last else (spec.batch, groups, *spec.size)
    marks = output_pool.empty(shape, np.dtype(np.float32))
    if channels == 1:
        _call(spec, "split_planes", _bits(x, (1, 1, -1)), _bits(clean, (1, 1, -1)), marks.reshape(1, -1))
    elif last:
        _call(spec, "split_rows", _bits(x, (-1,)), _bits(clean, (-1,)), marks.reshape(-1), channels)
    else:
        planes = (spec.batch * groups, channels, math.prod(spec.size))
        _call(spec, "split_planes", _bits(x, planes), _bits(clean, planes), marks.reshape(planes[0], -1))
    return clean, marks


def _signs(spec: Conv3DSpec, x: np.ndarray) -> np.ndarray:
    """-1 or 1 for each infinity, 0 for all else."""
    signs = output_pool.empty(x.shape, np.dtype(np.float32))
    _call(spec, "signs", _bits(x, (-1,)), signs.reshape(-1))
    return signs


def _of_windows(spec: Conv3DSpec, marks: np.ndarray) -> np.ndarray:
    """The marks of windows by those of positions."""
    seen = drop_dead_taps(spec)
    first = 1 if spec.data_format == CHANNELS_LAST else 2
    for number, windows in enumerate(seen.out_size):
        taps, stride, dilation = seen.kernel[number], seen.strides[number], seen.dilation[number]
        before = seen.pads[number].before
        axis, shape = first + number, marks.shape
        if taps == stride == 1 and before == 0 and windows == shape[axis]:
            continue
        sums = output_pool.empty((*shape[:axis], windows, *shape[axis + 1 :]), marks.dtype)
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        views = marks.reshape(outer, -1, inner), sums.reshape(outer, windows, inner)
        _call(spec, "box", *views, taps, stride, dilation, before, max(1, _SUMS // inner))
        marks = sums
    return marks


def _mend(spec: Conv3DSpec, out: np.ndarray, marks: np.ndarray, sums: np.ndarray | None, table: np.ndarray) -> None:
    """Writes the results of windows that are not finite; there are no sums of signs where all of them hold NaN."""
    groups, filters = spec.groups, spec.group_filters
    read = np.empty(1, np.float32) if sums is None else sums.reshape(-1)
    table = table.reshape(3, groups, filters)
    if spec.data_format == CHANNELS_LAST:
        into = _bits(out, (-1, groups, filters))
        _call(spec, "mend_rows", marks.reshape(-1, groups), read, table, into)
    else:
        into = _bits(out, (spec.batch, groups, filters, -1))
        _call(spec, "mend_planes", marks.reshape(spec.batch, groups, -1), read, table, into, int(sums is not None))


def _mend_adding(
    spec: Conv3DSpec,
    out: np.ndarray,
    marks: np.ndarray,
    sums: np.ndarray | None,
    bias: np.ndarray | None,
    residual: np.ndarray,
) -> None:
    """:func:`_mend` where a residual operand is added: it has a value for each result, not for each filter."""
    positions = 1 if spec.data_format == CHANNELS_LAST else math.prod(spec.out_size)
    shape = (out.size // (spec.filters * positions), spec.groups, spec.group_filters, positions)
    values, kinds = _terms(spec, bias)
    code = _code_of(spec.dtype, spec.bias, spec.post_ops).get_function("mend_adding")
    views = (
        interchange.exported(marks.reshape(shape[0], spec.groups, positions)),
        interchange.exported(np.empty(1, np.float32) if sums is None else sums.reshape(-1)),
        interchange.exported(values.reshape(spec.groups, spec.group_filters)),
        interchange.exported(kinds),
        interchange.exported(residual, shape),
        interchange.exported(out, shape),
    )
    threads.run(code, *views, max(1, _SUMS // positions))


def _results(spec: Conv3DSpec, bias: np.ndarray | None) -> np.ndarray:
    """What the layer makes of sums that are NaN, infinity and minus infinity: (3, filters), as integers."""
    results = np.empty((3, spec.filters), numpy_dtype(spec.dtype))
    code = _code_of(spec.dtype, spec.bias, spec.post_ops).get_function("results")
    threads.run(code, *map(interchange.exported, (*_terms(spec, bias), results)))
    return _bits(results, results.shape)


def _terms(spec: Conv3DSpec, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each filter's bias, zero where there is none, and NaN, infinity and minus infinity, in the accumulator's type."""
    values = np.zeros(spec.filters, spec.accumulator) if bias is None else bias.astype(spec.accumulator)
    return values, np.array([np.nan, np.inf, -np.inf], spec.accumulator)


def _largest(x: np.ndarray) -> float:
    """The largest magnitude of finite numbers."""
    return float(max(x.max(), -x.min()))


def _bits(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`x` as integers of the same size."""
    return x.view(np.dtype(f"i{x.itemsize}")).reshape(shape)


def _call(spec: Conv3DSpec, name: str, *arguments: np.ndarray | int) -> None:
    views = (interchange.exported(a) if isinstance(a, np.ndarray) else a for a in arguments)
    threads.run(_code(spec.dtype).get_function(name), *views)


@functools.cache
def _code(dtype: str) -> Any:
    """The loaded functions for data of a type."""
    identity = {"name": f"data of {dtype} that are not finite"}
    return helper_code.get(identity, functools.partial(_module, dtype))


def _module(dtype: str) -> IRModule:
    from tvm_conv3d.compute.shared import nonfinite

    return nonfinite.module(dtype)


@functools.cache
def _code_of(dtype: str, bias: bool, post_ops: tuple[str, ...]) -> Any:
    """The loaded function that makes results of sums that are not finite: one that adds a residual operand, or not."""
    one = (1, 1, 1)
    spec = Conv3DSpec(1, one, 1, 1, one, dtype=dtype, bias=bias, post_ops=post_ops)
    identity = {"name": "results of sums that are not finite", "of": spec.key()}
    return helper_code.get(identity, functools.partial(_results_module, spec))


def _results_module(spec: Conv3DSpec) -> IRModule:
    from tvm_conv3d.compute.shared import nonfinite

    return nonfinite.results_module(canonicalize(spec))
