"""Winograd along rows of grouped layers: right for all shapes, within its stated error, taken where it pays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from problems import run_plan
from sampling import sampled
from tvm_conv3d import Conv3D
from tvm_conv3d.compute.llvm.winograd_rows import WinogradRowsVariant, declare, error_bound
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.schedules.llvm.costs import winograd_rows
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Triple, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target


def grouped(size: Triple, channels: int, filters: int, groups: int, kernel: Triple, **more: object) -> Conv3DSpec:
    strides = more.get("strides", (1, 1, 1))
    dilation = more.get("dilation", (1, 1, 1))
    pads = same_padding(size, kernel, strides, dilation)  # type: ignore[arg-type]
    return Conv3DSpec(2, size, channels, filters, kernel, pads=pads, groups=groups, **more)  # type: ignore[arg-type]


CASES = {
    "depthwise": (grouped((5, 9, 13), 32, 32, 32, (3, 3, 3)), WinogradRowsVariant(4, (2, 4, 2), 16, 2, 2)),
    "odd channels": (grouped((4, 7, 11), 21, 21, 21, (3, 5, 5)), WinogradRowsVariant(2, (4, 4, 4), 16, 4, 2)),
    "7x7x7": (grouped((8, 9, 10), 16, 16, 16, (7, 7, 7)), WinogradRowsVariant(6, (4, 8, 2), 16, 8, 2)),
    "two filters a channel": (grouped((3, 6, 9), 6, 12, 6, (1, 3, 3)), WinogradRowsVariant(4, (1, 4, 3), 4, 2, 1)),
    "four channels a group": (grouped((4, 6, 8), 32, 32, 8, (3, 3, 3)), WinogradRowsVariant(4, (2, 2, 2), 16, 1, 2)),
    "strided depth and height": (
        grouped((7, 9, 10), 16, 16, 16, (3, 5, 5), strides=(2, 2, 1)),
        WinogradRowsVariant(4, (2, 2, 3), 16, 2, 1, parallel_blocks=True),
    ),
    "dilated depth": (
        grouped((9, 5, 8), 24, 24, 24, (3, 3, 5), dilation=(2, 1, 1)),
        WinogradRowsVariant(2, (4, 4, 2), 8, 4, 1, parallel_blocks=True),
    ),
    "past the caches": (
        grouped((6, 20, 20), 64, 64, 64, (3, 3, 7)),
        WinogradRowsVariant(4, (2, 4, 2), 16, 4, 2, stream=True),
    ),
}


@pytest.mark.parametrize(("name", "data_format"), sampled(itertools.product(CASES, (CHANNELS_LAST, CHANNELS_FIRST)), 3))
def test_numbers(name: str, data_format: str) -> None:
    spec, variant = CASES[name]
    plan = Plan(replace(spec, data_format=data_format), "winograd_rows", variant, {"depth": 2})
    assert run_plan(plan) < max(1.5 * error_bound(canonicalize(plan.spec), variant), 2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype: str) -> None:
    spec, variant = CASES["7x7x7"]
    spec = replace(spec, dtype=dtype)
    assert run_plan(Plan(spec, "winograd_rows", variant, {"depth": 1})) < 1.5 * error_bound(canonicalize(spec), variant)


@pytest.mark.parametrize(
    "spec",
    [
        grouped((4, 6, 8), 16, 16, 1, (3, 3, 3)),
        grouped((4, 6, 8), 16, 16, 16, (3, 3, 3), strides=(1, 1, 2)),
        grouped((4, 6, 8), 16, 16, 16, (3, 3, 3), dilation=(1, 1, 2)),
        grouped((4, 6, 8), 16, 16, 16, (3, 3, 1)),
    ],
    ids=["one group", "strided width", "dilated width", "no taps along the width"],
)
def test_what_it_does_not_take(spec: Conv3DSpec) -> None:
    assert winograd_rows.priced(canonicalize(spec), cpu_traits(host_target(2))) == []
    with pytest.raises(ValueError, match="Received"):
        declare(spec, CASES["depthwise"][1])


def test_the_default_takes_it_for_long_kernels() -> None:
    target = host_target(2)
    long = grouped((32, 32, 32), 32, 32, 32, (7, 7, 7))
    plan = make_plan(long, target, logs=None)
    assert plan.algorithm == "winograd_rows"
    assert plan.error_bound < 1e-5
    assert make_plan(long, target, exact=True).algorithm in ("grouped", "depthwise")
    assert make_plan(grouped((8, 20, 20), 32, 32, 32, (3, 3, 3)), target).algorithm != "winograd_rows"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_reach_their_windows_only(bad: float) -> None:
    layer = Conv3D(16, 7, groups=16, padding="same", activation="relu")
    x = np.random.default_rng(0).standard_normal((1, 24, 24, 24, 16), dtype=np.float32)
    layer.build(x.shape)
    assert layer.plan_for(x.shape).algorithm == "winograd_rows"
    clean = layer(x)
    x[0, 12, 12, 12, 3] = bad
    y = layer(x)
    reached = np.zeros(y.shape, bool)
    reached[0, 9:16, 9:16, 9:16, 3] = True
    np.testing.assert_allclose(y[~reached], clean[~reached], atol=1e-4)
    strict = Conv3D(16, 7, groups=16, padding="same", activation="relu", accuracy="strict")
    strict.build(x.shape)
    strict.set_weights(layer.get_weights())
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(strict(x)))
