"""Normalization of (samples, positions, channels) in loops, for sizes known at the call only.

Data are read in rows (:mod:`tvm_conv3d.compute.shared.channel_rows`), some of which at a time are added up in the type
of the elements' arithmetic, and these sums in float64. Both are of numbers less a shift that is near to them (Chan,
Golub, LeVeque: Algorithms for computing the sample variance, The American Statistician 37, 1983), so that moments are
off by some roundings of either type relative to the variance, however large the mean is:

- The shift of some rows is the mean of those before them. Where the two means lie far apart, the variance is at least
  as large as half of their distance squared tells.
- That of the sums in float64 is the channel's first element of the sample. One of n numbers lies at most sqrt(n)
  standard deviations from their mean, which costs n roundings at worst.

Channels of a group are combined by the formula of the same paper, for equal counts.

An element's mean is subtracted before it is scaled, as the product would cancel where the mean is large; what the mean
loses when it is rounded to the type of the elements comes back with the shift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import IRModule, tirx
from tvm.script import tirx as T

from tvm_conv3d.compute.shared import pointers
from tvm_conv3d.compute.shared.channel_rows import LANES, ROOM, TOGETHER
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen
from tvm_conv3d.compute.shared.epilogue import apply_post_ops
from tvm_conv3d.spec.normalization import PRELU, NormalizationSpec

Expr = Any  # a TVM expression; its classes are not public names


def moments_module(dtype: str) -> IRModule:
    """The functions that make moments of data of an element type; pointers, and sizes as int64.

    sums(x, sums, samples, elements, channels, period, chunk)
                        `elements` of a sample; for each of its tasks three rows of `period` numbers: the channels'
                        deviations and squared deviations summed up, and what they deviate from
    moments(sums, moments, samples, positions, channels, groups, period, tasks)
                        moments: (samples, 2, channels), each channel's mean and variance, or its group's; the sums are
                        written over
    """
    return pointers.module({"sums": _sums(dtype), "moments": _moments()})


def module(spec: NormalizationSpec) -> IRModule:
    """The functions that make the result of moments; pointers, numbers as float64, and sizes as int64.

    tables(moments, affine, tables, samples, channels, period, epsilon)
                        affine: (2, channels), weights and biases; tables: (samples, 3, period) in the accumulator's
                        type: what is subtracted, multiplied by and added
    apply(x, residual, out, tables, slope, samples, elements, period, chunk)
                        residual and out: as x; where there is none, or out is x, they are not looked at
    """
    return pointers.module({"tables": _tables(spec.accumulator), "apply": _apply(spec)})


def _sums(dtype: str) -> Any:
    stored, accumulator = storage_dtype(dtype), "float64" if dtype == "float64" else "float32"
    begin_near, by_rows, by_elements = _first_means(dtype), _sums_of_rows(dtype), _sums_of_elements(dtype)

    @T.prim_func
    def sums(  # type: ignore[no-untyped-def]
        x_: T.handle,
        sums_: T.handle,
        samples: T.int64,
        elements: T.int64,
        channels: T.int64,
        period: T.int64,
        chunk: T.int64,
    ):
        x = pointers.elements(x_, stored, align=2)
        sums = pointers.elements(sums_, "float64", align=8)
        near = pointers.elements(sums_, accumulator, align=8)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            tasks: T.let = (elements + chunk - 1) // chunk
            for task in T.parallel(samples * tasks):
                sample: T.let = task // tasks * elements
                begin: T.let = sample + task % tasks * chunk
                length: T.let = T.min(chunk, elements - task % tasks * chunk)
                added: T.let = task * ROOM * period
                shift: T.let = added + 2 * period
                means: T.let = (shift + period) * (8 // np.dtype(accumulator).itemsize)
                for i in range(2 * period):
                    sums[added + i] = T.float64(0)
                for position in range(period // channels):
                    for channel in range(channels):
                        sums[shift + position * channels + channel] = _wide(x[sample + channel], dtype)
                # a sample's only row may not fill its vectors
                rows: T.let = T.Select(period % LANES == 0, length // period, T.int64(0))
                begin_near(x, near, begin, T.min(rows, T.int64(TOGETHER)), means, period)
                for block in range((rows + TOGETHER - 1) // TOGETHER):
                    left: T.let = T.min(T.int64(TOGETHER), rows - block * TOGETHER)
                    by_rows(x, near, sums, begin + block * TOGETHER * period, left, means, added, period)
                by_elements(x, sums, begin + rows * period, length - rows * period, added, period)
                for position in range(1, period // channels):
                    for channel in range(channels):
                        lane: T.let = added + position * channels + channel
                        sums[added + channel] = sums[added + channel] + sums[lane]
                        sums[added + period + channel] = sums[added + period + channel] + sums[period + lane]

    return sums


def _first_means(dtype: str) -> Any:
    """Means of a task's first rows, with zeros behind them for sums."""
    accumulator = "float64" if dtype == "float64" else "float32"

    @T.inline
    def begin_near(x, near, begin, rows, means, period):  # type: ignore[no-untyped-def]
        for i in range(3 * period):
            near[means + i] = tirx.const(0, accumulator)
        # each one divided, as their sum may be too large
        share: T.let = tirx.const(1, accumulator) / T.Cast(accumulator, rows)
        for row in range(rows):
            for i in range(period):
                near[means + i] = near[means + i] + widen(x[begin + row * period + i], dtype, accumulator) * share

    return begin_near


def _sums_of_rows(dtype: str) -> Any:
    """Adds up some rows: deviations from the means of those before, which then give way to their own."""
    accumulator = "float64" if dtype == "float64" else "float32"

    @T.inline
    def by_rows(x, near, sums, begin, rows, means, added, period):  # type: ignore[no-untyped-def]
        for row in range(rows):
            for vector in range(period // LANES):
                for lane in T.vectorized(T.int64(LANES)):
                    i: T.let = means + vector * LANES + lane
                    value: T.let = widen(x[begin + row * period + vector * LANES + lane], dtype, accumulator)
                    deviation: T.let = value - near[i]
                    near[period + i] = near[period + i] + deviation
                    near[2 * period + i] = near[2 * period + i] + _square(deviation)
        count: T.let = T.Cast("float64", rows)
        share: T.let = T.float64(1) / count
        for vector in range(period // LANES):
            for lane in T.vectorized(T.int64(LANES)):
                of: T.let = means + vector * LANES + lane
                at: T.let = added + vector * LANES + lane
                rest: T.let = T.Cast("float64", near[period + of]) * share
                squares: T.let = T.Cast("float64", near[2 * period + of]) - _square(rest) * count
                mean: T.let = T.Cast("float64", near[of]) + rest
                shifted: T.let = mean - sums[at + 2 * period]
                sums[at] = sums[at] + shifted * count
                sums[at + period] = sums[at + period] + (squares + _square(shifted) * count)
                near[of] = T.Cast(accumulator, mean)
                near[period + of] = tirx.const(0, accumulator)
                near[2 * period + of] = tirx.const(0, accumulator)

    return by_rows


def _sums_of_elements(dtype: str) -> Any:
    """Adds up a part of a row, element by element."""

    @T.inline
    def by_elements(x, sums, begin, length, added, period):  # type: ignore[no-untyped-def]
        for i in range(length):
            at: T.let = added + i
            deviation: T.let = _wide(x[begin + i], dtype) - sums[at + 2 * period]
            sums[at] = sums[at] + deviation
            sums[at + period] = sums[at + period] + _square(deviation)

    return by_elements


def _wide(value: Expr, dtype: str) -> Expr:
    """An element in float64."""
    return widen(value, dtype, "float64" if dtype == "float64" else "float32").astype("float64")


def _square(value: Expr) -> Expr:
    return value * value


def _moments() -> Any:
    @T.prim_func
    def moments(  # type: ignore[no-untyped-def]
        sums_: T.handle,
        moments_: T.handle,
        samples: T.int64,
        positions: T.int64,
        channels: T.int64,
        groups: T.int64,
        period: T.int64,
        tasks: T.int64,
    ):
        sums = pointers.elements(sums_, "float64", align=8)
        out = pointers.elements(moments_, "float64", align=8)
        count: T.let = T.Cast("float64", positions)
        each: T.let = channels // groups
        for sample in range(samples):
            mean: T.let = sample * tasks * ROOM * period
            square: T.let = mean + period
            for task in range(1, tasks):
                for i in range(channels):
                    sums[mean + i] = sums[mean + i] + sums[mean + task * ROOM * period + i]
                    sums[square + i] = sums[square + i] + sums[square + task * ROOM * period + i]
            for i in range(channels):
                deviation: T.let = sums[mean + i] / count
                squares: T.let = sums[square + i] - sums[mean + i] * deviation
                sums[mean + i] = sums[square + period + i] + deviation
                # not below zero by rounding; a comparison is false for NaN, which stays
                sums[square + i] = T.Select(squares < T.float64(0), T.float64(0), squares)
            for group in range(groups):
                first: T.let = sample * 2 * channels + group * each
                out[first] = T.float64(0)
                for i in range(group * each, (group + 1) * each):
                    out[first] = out[first] + sums[mean + i] / T.Cast("float64", each)
                out[first + channels] = T.float64(0)
                for i in range(group * each, (group + 1) * each):
                    spread: T.let = sums[square + i] + _square(sums[mean + i] - out[first]) * count
                    out[first + channels] = out[first + channels] + spread / (T.Cast("float64", each) * count)
                for i in range(1, each):
                    out[first + i] = out[first]
                    out[first + channels + i] = out[first + channels]

    return moments


def _tables(accumulator: str) -> Any:
    @T.prim_func
    def tables(  # type: ignore[no-untyped-def]
        moments_: T.handle,
        affine_: T.handle,
        tables_: T.handle,
        samples: T.int64,
        channels: T.int64,
        period: T.int64,
        epsilon: T.float64,
    ):
        moments = pointers.elements(moments_, "float64", align=8)
        affine = pointers.elements(affine_, "float64", align=8)
        tables = pointers.elements(tables_, accumulator, align=4)
        for sample in range(samples):
            for i in range(channels):
                mean: T.let = moments[sample * 2 * channels + i]
                scale: T.let = affine[i] / T.sqrt(moments[(sample * 2 + 1) * channels + i] + epsilon)
                near: T.let = T.Cast(accumulator, mean)
                tables[sample * 3 * period + i] = near
                tables[(sample * 3 + 1) * period + i] = T.Cast(accumulator, scale)
                tables[(sample * 3 + 2) * period + i] = T.Cast(
                    accumulator, affine[channels + i] - (mean - T.Cast("float64", near)) * scale
                )
            for table in range(3):
                for i in range(channels, period):
                    at: T.let = (sample * 3 + table) * period + i
                    tables[at] = tables[at - channels]

    return tables


def _apply(spec: NormalizationSpec) -> Any:
    accumulator, stored = spec.accumulator, storage_dtype(spec.dtype)

    def into(x: Expr, out: Expr) -> Expr:
        # code that is told of one buffer only expects that what it reads is written over
        return x if spec.in_place else out

    def finished(x: Any, residual: Any, tables: Any, at: Expr, table: Expr, period: Expr, slope: Expr) -> Expr:
        value = widen(x[at], spec.dtype, accumulator) - tables[table]
        value = value * tables[table + period] + tables[table + 2 * period]
        for step in spec.post_ops:
            if step == PRELU:
                value = tirx.Select(value < tirx.const(0, accumulator), slope.astype(accumulator) * value, value)
            else:
                added = widen(residual[at], spec.dtype, accumulator) if spec.residual else None
                value = apply_post_ops((step,), value, added)
        return narrow(value, spec.dtype, accumulator)

    @T.prim_func
    def apply(  # type: ignore[no-untyped-def]
        x_: T.handle,
        residual_: T.handle,
        out_: T.handle,
        tables_: T.handle,
        slope: T.float64,
        samples: T.int64,
        elements: T.int64,
        period: T.int64,
        chunk: T.int64,
    ):
        x = pointers.elements(x_, stored, align=2)
        residual = pointers.elements(residual_, stored, align=2)
        out = pointers.elements(into(x_, out_), stored, align=2)
        tables = pointers.elements(tables_, accumulator, align=4)
        with T.attr(0, "device_id", 0), T.attr(0, "device_type", 1):
            tasks: T.let = (elements + chunk - 1) // chunk
            for task in T.parallel(samples * tasks):
                begin: T.let = task // tasks * elements + task % tasks * chunk
                length: T.let = T.min(chunk, elements - task % tasks * chunk)
                table: T.let = task // tasks * 3 * period
                for row in range((length + period - 1) // period):
                    from_: T.let = begin + row * period
                    width: T.let = T.min(period, length - row * period)
                    for vector in range(width // LANES):
                        for lane in T.vectorized(T.int64(LANES)):
                            i: T.let = vector * LANES + lane
                            out[from_ + i] = finished(x, residual, tables, from_ + i, table + i, period, slope)
                    for i in range(width // LANES * LANES, width):
                        out[from_ + i] = finished(x, residual, tables, from_ + i, table + i, period, slope)

    return apply
