"""Normalization of arrays with the channels last: instance norm, group norm, and batch norm with given statistics."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.channel_rows import ROOM, Rows, rows_of
from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads
from tvm_conv3d.spec.normalization import NormalizationSpec

if TYPE_CHECKING:
    from tvm import IRModule

_FLOAT64 = np.dtype(np.float64)


def normalize(
    x: np.ndarray,
    groups: int,
    epsilon: float,
    given: tuple[np.ndarray, np.ndarray] | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    slope: float = 0.0,
    post_ops: tuple[str, ...] = (),
    in_place: bool = False,
) -> np.ndarray:
    """post_ops((x - mean) / sqrt(variance + epsilon) * weight + bias).

    Moments are of all positions of a sample and the channels of a group, the variance biased; their errors are those of
    float64 whatever the element type, and a result's those of a few roundings of its elements. Where one element of a
    group is NaN or infinite, the group's results are NaN.

    Args:
        x: (batch, ..., channels) in C order, aligned.
        groups: of equally many successive channels; all of them for instance norm.
        epsilon: is added to variances.
        given: means and variances of the channels, in place of the data's; `groups` is not looked at then.
        weight, bias: of each channel; None is 1 and 0.
        residual: what "add" adds, as `x`, sharing no memory with it where `in_place` is set.
        slope: of "prelu".
        post_ops: as :func:`tvm_conv3d.spec.normalization.canonical` gives them.
        in_place: the result is written over `x`.

    Returns:
        `x`, or a fresh array like it.

    Raises:
        MemoryError: there is none for the result or the sums.
    """
    out = x if in_place else output_pool.empty(x.shape, x.dtype)
    if not x.size:
        return out
    channels = x.shape[-1]
    # one table serves all samples where statistics are given
    samples = x.shape[0] if given is None else 1
    elements = x.size // samples
    rows = rows_of(samples, elements // channels, channels)
    make_tables, apply, accumulator = _code(x.dtype, post_ops, in_place)
    tables = output_pool.aligned((samples, 3, rows.period), accumulator)
    moments = _channels(channels, given) if given is not None else _moments(x, samples, groups, rows)
    if given is None and x.dtype != _FLOAT64 and np.isinf(moments).any():
        # squares of more than float32 holds
        moments = _moments(x.astype(_FLOAT64), samples, groups, rows)
    affine = _channels(channels, (1 if weight is None else weight, 0 if bias is None else bias))
    pointers = helper_code.pointers(x, x if residual is None else residual, out, tables)
    with exit_guard.in_flight():
        make_tables(*helper_code.pointers(moments, affine, tables), samples, channels, rows.period, epsilon)
        threads.run(apply, *pointers, slope, samples, elements, rows.period, rows.chunk)
    return out


def _moments(x: np.ndarray, samples: int, groups: int, rows: Rows) -> np.ndarray:
    """Mean and variance of each channel, those of its group: (samples, 2, channels)."""
    channels, elements = x.shape[-1], x.size // samples
    add_up, make_moments = _moments_code(x.dtype)
    sums = output_pool.aligned((samples, rows.tasks, ROOM, rows.period), _FLOAT64)
    moments = np.empty((samples, 2, channels))
    pointers = helper_code.pointers(x, sums, moments)
    with exit_guard.in_flight():
        threads.run(add_up, *pointers[:2], samples, elements, channels, rows.period, rows.chunk)
        make_moments(*pointers[1:], samples, elements // channels, channels, groups, rows.period, rows.tasks)
    return moments


def _channels(channels: int, values: tuple[Any, Any]) -> np.ndarray:
    """Two numbers of each channel in float64: (2, channels)."""
    found = np.empty((2, channels))
    found[0], found[1] = values
    return found


@functools.cache
def _moments_code(dtype: np.dtype) -> tuple[Any, Any]:
    """The loaded functions that make moments of data of a type."""

    code = helper_code.get({"name": f"moments of data of {dtype.name}"}, functools.partial(_moments_module, dtype.name))
    return code.get_function("sums"), code.get_function("moments")


def _moments_module(dtype: str) -> IRModule:
    from tvm_conv3d.compute.llvm import normalization

    return normalization.moments_module(dtype)


@functools.lru_cache(1024)
def _code(dtype: np.dtype, post_ops: tuple[str, ...], in_place: bool) -> tuple[Any, Any, np.dtype]:
    """The loaded functions that make results of moments, and the type of their tables."""
    spec = NormalizationSpec(dtype.name, post_ops, in_place)
    code = helper_code.get({"name": "normalization", "of": spec.key()}, functools.partial(_module, spec))
    return code.get_function("tables"), code.get_function("apply"), np.dtype(spec.accumulator)


def _module(spec: NormalizationSpec) -> IRModule:
    from tvm_conv3d.compute.llvm import normalization
    from tvm_conv3d.schedules.llvm.passes import vectorize_libm

    return vectorize_libm.rewrite(normalization.module(spec))
