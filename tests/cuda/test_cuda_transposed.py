"""Transposed convolution on GPUs: every algorithm that takes it, of strides those that store phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from cuda_checks import assert_right, compute, default_plans
from problems import data, data_gradients
from transposed_cases import GEOMETRIES, gradient
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec
from tvm_conv3d.target.gpu import ARCHITECTURES

TRAITS = ARCHITECTURES["sm_80"]


def plans_of(spec: Conv3DSpec) -> list[Plan]:
    """One of each algorithm, and where it has them one whose reduction is cut."""
    found = []
    for name, algorithm in algorithms("cuda").items():
        changed = replace(spec, dtype="float16") if name == "tensor_gemm" else spec
        variants = algorithm.variants(changed, TRAITS)
        cut = [variant for variant in variants if getattr(variant, "parts", 1) > 1]
        found += [Plan(changed, name, variant, {}) for variant in (*variants[:1], *cut[:1])]
    return found


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_geometries(data_format: str, every: int, machine: str) -> None:
    plans = []
    for channels, filters, groups, chain in ((16, 16, 1, ("relu",)), (5, 3, 1, ("add", "relu")), (12, 24, 2, ())):
        for kernel, strides, before, open_cells in GEOMETRIES[::every]:
            more = {"before": before, "open_cells": open_cells, "groups": groups, "data_format": data_format}
            plans += plans_of(gradient((2, 3, 3), channels, filters, kernel, strides, post_ops=chain, **more))
    strided = {plan.algorithm for plan in plans if canonicalize(plan.spec).phased}
    assert strided == {"gemm", "tensor_gemm"}
    assert {plan.algorithm for plan in plans} > strided
    assert_right(plans, machine=machine)


def test_reductions_in_parts(machine: str) -> None:
    """The sums of parts are added by a kernel of their own, which stores the phases."""
    plans = []
    for data_format in (CHANNELS_LAST, CHANNELS_FIRST):
        spec = gradient((2, 2, 2), 12, 64, (3, 3, 3), (2, 2, 2), before=(1, 1, 1), data_format=data_format)
        plans += [plan for plan in plans_of(spec) if plan.variant.parts > 1]
    assert {plan.algorithm for plan in plans} == {"gemm", "tensor_gemm"}
    assert_right(plans, machine=machine)


@pytest.mark.parametrize("count", [6, pytest.param(36, marks=pytest.mark.deep)])
def test_random_problems(count: int, machine: str) -> None:
    specs: list[Conv3DSpec] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(spec=data_gradients())
    def draw(spec: Conv3DSpec) -> None:
        specs.append(spec)

    draw()
    assert_right(default_plans(specs), machine=machine)


def test_nonfinite_data_reach_the_cells_of_their_windows(machine: str) -> None:
    specs = [gradient((3, 3, 3), 8, 4, (3, 2, 1), (2, 2, 2), before=(1, 0, 0), data_format=f) for f in FORMATS]
    plans, inputs = default_plans(specs), []
    for spec in specs:
        x, kernel, bias = data(spec)
        x.flat[::37] = np.nan
        inputs.append((x, kernel, bias))
    for spec, given_, out in zip(specs, inputs, compute(plans, inputs, machine=machine), strict=True):
        np.testing.assert_array_equal(np.isnan(out), np.isnan(oracle.convolve(spec, *given_)))


FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)
