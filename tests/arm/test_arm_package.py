"""Whole calls of this package on ARM machines: the grid of Keras's arguments, NaN, and what networks need beside."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arm_on_cpu import MACHINES, NEON, Call, Machine, Program, missing, stand_in, this_machine_is
from arm_on_cpu import run as arm_run
from keras_cases import grid, spec_of
from problems import assert_right, data, numpy_dtype, run
from sampling import sampled
from tvm_conv3d.functional import interpolation, normalization, pooling
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import concatenation, conversion
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.spec.interpolation import Interpolation
from tvm_conv3d.spec.pooling import Pooling

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

DTYPES = ("float32", "float64", "float16", "bfloat16")

#: Largest relative error (2-norm) of sums of few numbers.
BOUNDS = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}

LAYER = Conv3DSpec(1, (6, 10, 12), 16, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))

on_machines = pytest.mark.parametrize("machine", sampled(MACHINES, 3), ids=str)


@pytest.mark.parametrize("every", [47, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_grid_of_keras(machine: Machine, every: int) -> None:
    cases = grid()
    with this_machine_is(machine):
        for arguments in cases[MACHINES.index(machine) :: every]:
            assert_right(spec_of(arguments))


def test_calls_are_made_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(program: Program, machine: Machine, calls: Sequence[Call], *more: Any) -> dict[str, np.ndarray]:
        # of an ELF file's head: the machine, 183 for AArch64
        seen.append((int.from_bytes(program.path.read_bytes()[18:20], "little"), machine, calls[0].function))
        return arm_run(program, machine, calls, *more)

    monkeypatch.setattr(stand_in, "run", noted)
    with this_machine_is(NEON):
        assert_right(LAYER)
    assert seen == [(183, NEON, "pack"), (183, NEON, "main")]
    assert_right(LAYER)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("dtype", "data_format", "machine"),
    sampled(itertools.product(DTYPES, (CHANNELS_LAST, CHANNELS_FIRST), MACHINES), 9),
    ids=str,
)
def test_element_types(dtype: str, data_format: str, machine: Machine) -> None:
    with this_machine_is(machine, reverse=True):
        for groups in (1, 2, 8):
            assert_right(replace(LAYER, dtype=dtype, data_format=data_format, groups=groups))


@pytest.mark.parametrize("values", [(np.nan,), (np.inf, -np.inf)])
@on_machines
def test_non_finite_values_reach_exactly_their_windows(machine: Machine, values: tuple[float, ...]) -> None:
    spec = replace(LAYER, channels=32, filters=32)
    x, kernel, bias = data(spec)
    x.reshape(-1)[:: x.size // 5] = np.resize(values, len(x.reshape(-1)[:: x.size // 5]))
    with this_machine_is(machine):
        assert Executor().plan_for(spec).algorithm == "winograd"
        found = run(spec, x, kernel, bias)
    with np.errstate(invalid="ignore"):
        expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias))
    finite = np.isfinite(expected)
    assert 0 < finite.sum() < finite.size
    np.testing.assert_array_equal(np.isfinite(found), finite)
    np.testing.assert_array_equal(found[~finite].astype(np.float64), expected[~finite])
    assert oracle.relative_error(found[finite], expected[finite]) < 1e-5


def numbers(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert oracle.relative_error(found, expected) < BOUNDS[found.dtype.name]


@pytest.mark.parametrize(
    ("groups", "dtype", "machine"), sampled(itertools.product((4, 12), DTYPES, MACHINES), 9), ids=str
)
def test_normalization(groups: int, dtype: str, machine: Machine) -> None:
    x, residual = numbers(dtype, 2, 3, 5, 7, 12), numbers(dtype, 2, 3, 5, 7, 12, seed=1)
    weight, bias = (numbers("float64", 12, seed=seed) for seed in (2, 3))
    with this_machine_is(machine):
        found = normalization.normalize(x, groups, 1e-3, None, weight, bias, residual, post_ops=("add", "relu"))
    apart = x.astype(np.float64).reshape(2, -1, groups, 12 // groups)
    deviation = np.sqrt(apart.var((1, 3), keepdims=True) + 1e-3)
    normal = ((apart - apart.mean((1, 3), keepdims=True)) / deviation).reshape(x.shape)
    assert_close(found, np.maximum(normal * weight + bias + residual.astype(np.float64), 0))


@pytest.mark.parametrize(
    ("kind", "dtype", "machine"), sampled(itertools.product(("max", "average"), DTYPES, MACHINES), 9), ids=str
)
def test_pooling(kind: str, dtype: str, machine: Machine) -> None:
    spec = Pooling(kind, (7, 6, 9), (3, 2, 3), (2, 2, 1), (1, 0, 1))
    x = numbers(dtype, 2, *spec.size, 13)
    with this_machine_is(machine):
        found = pooling.pool(x, spec)
    outside = -np.inf if kind == "max" else 0.0
    pads = ((0, 0), *((pad, pad) for pad in spec.pads), (0, 0))
    padded = np.pad(x.astype(np.float64), pads, constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, spec.kernel, (1, 2, 3))[:, ::2, ::2]
    over = (-3, -2, -1)
    assert_close(found, windows.max(over) if kind == "max" else windows.mean(over))


@pytest.mark.parametrize(
    ("mode", "dtype", "machine"), sampled(itertools.product(("nearest", "trilinear"), DTYPES, MACHINES), 9), ids=str
)
def test_interpolation(mode: str, dtype: str, machine: Machine) -> None:
    size, out_size = (3, 4, 5), (6, 4, 10)
    x = numbers(dtype, 2, *size, 11)
    with this_machine_is(machine):
        found = interpolation.interpolate(x, Interpolation(mode, size, out_size))
    expected = x.astype(np.float64)
    for axis, (cells, results) in enumerate(zip(size, out_size, strict=True), 1):
        places = (np.arange(results) + 0.5) * cells / results - 0.5
        if mode == "nearest":
            expected = expected.take(np.floor(places + 0.5).astype(int), axis)
        else:
            inside = places.clip(0, cells - 1)
            first = np.floor(inside).astype(int)
            factor = (inside - first).reshape(-1, *(1,) * (4 - axis))
            second = np.minimum(first + 1, cells - 1)
            expected = expected.take(first, axis) * (1 - factor) + expected.take(second, axis) * factor
    assert_close(found, expected)


@on_machines
def test_concatenation_and_copies(machine: Machine) -> None:
    arrays = [numbers("float32", 2, 3, 4, channels) for channels in (3, 16, 21)]
    wide = numbers("float64", 40, 60, 130).transpose(2, 0, 1)
    with this_machine_is(machine):
        joined = concatenation.concatenate(arrays)
        copies = {dtype: conversion.contiguous(wide, numpy_dtype(dtype)) for dtype in DTYPES}
    np.testing.assert_array_equal(joined, np.concatenate(arrays, -1))
    for dtype, copy in copies.items():
        np.testing.assert_array_equal(copy, wide.astype(numpy_dtype(dtype)))
