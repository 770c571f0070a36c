"""Taps that no output cell sees are left out, whatever the dilation, and nothing else changes."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing_oracle import live_weights
from problems import BOUNDS, WINOGRAD_BOUND, assert_right, run_plan
from sampling import sampled
from tvm_conv3d import Conv3D
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.compute.shared.live_taps import drop_dead_taps, live_taps
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DATA_GRADIENT,
    WEIGHT_GRADIENT,
    Conv3DSpec,
    Pads,
    Triple,
    same_padding,
)
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

HUGE = 10**6


def same(size: Triple, kernel: Triple, **more: object) -> Conv3DSpec:
    strides = more.get("strides", (1, 1, 1))
    dilation = more.get("dilation", (1, 1, 1))
    pads = same_padding(size, kernel, strides, dilation)  # type: ignore[arg-type]
    return Conv3DSpec(1, size, 5, 18, kernel, pads=pads, **more)  # type: ignore[arg-type]


@st.composite
def padded(draw: st.DrawFn) -> Conv3DSpec:
    """Problems with more padding, dilation and stride than input."""
    triple = st.tuples(*[st.integers(1, 4)] * 3)
    kernel, strides = draw(triple), draw(triple)
    dilation = draw(st.tuples(*[st.integers(1, 9)] * 3))
    size = draw(triple)
    pads = []
    for n, k, d in zip(size, kernel, dilation, strict=True):
        least = max(0, (k - 1) * d + 1 - n)
        before = draw(st.integers(0, least + 6))
        pads.append(Pads(before, max(0, least - before) + draw(st.integers(0, 6))))
    return Conv3DSpec(1, size, 2, 3, kernel, strides, dilation, tuple(pads), dtype="float64")  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(spec=padded())
def test_the_trimmed_problem_is_the_same(spec: Conv3DSpec) -> None:
    """By the definition: each output cell sums the same products of cells and taps."""
    trimmed = drop_dead_taps(spec)
    assert trimmed.out_size == spec.out_size
    assert trimmed.size == spec.size
    for axis in range(3):
        assert terms(trimmed, axis, live_taps(spec)[axis].start) == terms(spec, axis, 0)
        seen = {(tap, o) for o, tap, _ in terms(spec, axis, 0)}
        for tap in range(spec.kernel[axis]):
            assert spec.live_windows(axis, tap) == sum(1 for other, _ in seen if other == tap)
    assert drop_dead_taps(trimmed) == trimmed


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spec=padded())
def test_canonical_forms(spec: Conv3DSpec) -> None:
    """The same products by the definition; equal problems have one, which no other problem equals."""
    canonical = canonicalize(spec)
    assert canonical.origin == spec
    assert canonical.taps == tuple((tuple(taps),) for taps in live_taps(spec))
    assert canonical.key() == spec.key()
    assert canonicalize(replace(spec)) is canonical
    assert canonical != canonicalize(replace(spec, filters=spec.filters + 1))
    assert canonical != spec and not isinstance(canonical, Conv3DSpec)
    names = [f.name for f in fields(Conv3DSpec) if hasattr(canonical, f.name)]
    merged = Conv3DSpec(**{name: getattr(canonical, name) for name in names})
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(spec.input_shape), rng.standard_normal(spec.kernel_shape)
    expected = oracle.convolve(spec, x, kernel)
    result = oracle.convolve(merged, x.reshape(merged.input_shape), live_weights(canonical, kernel))
    np.testing.assert_allclose(result.reshape(spec.output_shape), expected, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"direction": DATA_GRADIENT, "input_dilation": (2, 1, 1)},
        {"direction": WEIGHT_GRADIENT, "input_dilation": (1, 1, 2)},
        {"input_dilation": (1, 2, 1)},
        {"output_dtype": "float32"},
        {"weights_dtype": "float64"},
    ],
)
def test_what_no_algorithm_takes_is_refused(change: dict[str, object]) -> None:
    spec = replace(same((8, 8, 8), (3, 3, 3), dtype="bfloat16"), **change)  # type: ignore[arg-type]
    for target in ("llvm", "cuda:sm_80"):
        with pytest.raises(ValueError, match=f"convolutions and gradients of undilated inputs only.*{spec.key()}"):
            make_plan(spec, resolve(target, 2))


@pytest.mark.parametrize(
    ("groups", "data_format"), sampled(itertools.product((1, 16), (CHANNELS_LAST, CHANNELS_FIRST)), 3)
)
def test_negative_pads_crop(groups: int, data_format: str) -> None:
    """For all algorithms, with pads that crop, that crop one side and pad the other, and that leave nothing."""
    traits = cpu_traits(host_target(2))
    tried = set()
    for pads in (((-1, 1), (2, -2), (-2, -1)), ((0, 0), (-1, -1), (1, -3)), ((1, 1), (1, 1), (12, -11))):
        spec = Conv3DSpec(
            1, (5, 9, 12), 16, 16, (3, 3, 3), pads=pads, groups=groups, data_format=data_format, post_ops=("relu",)
        )  # type: ignore[arg-type]
        for name, algorithm in algorithms("llvm").items():
            for variant in algorithm.variants(spec, traits)[:1]:
                assert run_plan(Plan(spec, name, variant, {})) < WINOGRAD_BOUND, (name, spec.key())
                tried.add(name)
    assert tried >= ({"direct", "winograd"} if groups == 1 else {"direct", "grouped", "winograd_rows"})


def terms(spec: Conv3DSpec, axis: int, first: int) -> set[tuple[int, int, int]]:
    """(output cell, tap, input cell) of all products along an axis."""
    found = set()
    for o in range(spec.out_size[axis]):
        for t in range(spec.kernel[axis]):
            at = o * spec.strides[axis] + t * spec.dilation[axis] - spec.pads[axis].before
            if 0 <= at < spec.size[axis]:
                found.add((o, t + first, at))
    return found


def test_what_is_left() -> None:
    spec = same((1, 2, 8), (3, 3, 3))
    assert live_taps(spec) == (range(1, 2), range(0, 3), range(0, 3))
    assert drop_dead_taps(spec).kernel == (1, 3, 3)
    assert drop_dead_taps(spec).pads == ((0, 0), (1, 1), (1, 1))
    assert drop_dead_taps(same((8, 8, 8), (3, 3, 3))) == same((8, 8, 8), (3, 3, 3))
    kernel = np.arange(27).reshape(3, 3, 3, 1, 1)
    np.testing.assert_array_equal(live_weights(canonicalize(spec), kernel), kernel[1:2])
    point = canonicalize(same((1, 1, 1), (3, 3, 3)))
    assert (point.kernel, point.pads) == ((1, 1, 1), ((0, 0),) * 3)


def test_one_window_has_no_stride() -> None:
    spec = Conv3DSpec(1, (5, 5, 5), 2, 2, (3, 3, 3), strides=(10**30,) * 3)
    assert drop_dead_taps(spec).strides == (1, 1, 1)
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 5, 2)).astype(np.float32)
    for padding in ("same", "valid"):
        far, near = (Conv3D(2, 3, strides=stride, padding=padding) for stride in (10**30, 5))
        near.build(x.shape)
        far.build(x.shape)
        far.set_weights(near.get_weights())
        np.testing.assert_array_equal(far(x), near(x))


@pytest.mark.parametrize(("dilation", "kernel"), sampled(itertools.product((2, 7, 8, 15, 40), (2, 3, 4)), 4))
def test_numbers(dilation: int, kernel: int) -> None:
    spec = same((8, 3, 5), (kernel,) * 3, dilation=(dilation,) * 3)
    for more in ({}, {"data_format": CHANNELS_FIRST}, {"groups": 3, "channels": 6}, {"channels": 48, "filters": 48}):
        assert_right(replace(spec, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_huge_dilation_costs_no_memory(kernel: int) -> None:
    """A padded copy would take 10**19 bytes; beyond the input's size all dilations are the same."""
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 8, 4)).astype(np.float32)
    huge = Conv3D(6, kernel, padding="same", dilation_rate=HUGE)
    result = huge(x)
    spec = replace(same((8, 8, 8), (kernel,) * 3, dilation=(20,) * 3), batch=2, channels=4, filters=6)
    expected = oracle.convolve(spec, x, huge.get_weights()[0], huge.get_weights()[1])
    assert oracle.relative_error(result, expected) < BOUNDS["float32"]


def test_padding_does_not_meet_non_finite_input() -> None:
    """No output sees a cell of the input: the bias alone is left, whatever the input holds."""
    layer = Conv3D(3, 2, padding="same", dilation_rate=HUGE, bias_initializer="ones")
    np.testing.assert_array_equal(layer(np.full((1, 4, 4, 4, 2), np.nan, np.float32)), 1)


def test_sizes_that_see_other_taps_do_not_share_weights() -> None:
    """An extent of 1 sees no tap and one of 2 sees the second: both leave a kernel of the same shape."""
    layer = Conv3D(4, (4, 1, 1), dilation_rate=(3, 1, 1), padding="same")
    found = set()
    for depth in (1, 2, 3, 1, 2, 3, 4):
        x = np.random.default_rng(depth).standard_normal((1, depth, 2, 2, 3)).astype(np.float32)
        spec = layer.plan_for(x.shape).spec
        found.add((len(live_taps(spec)[0]), live_taps(spec)[0].start))
        expected = oracle.convolve(spec, x, *layer.get_weights())
        assert oracle.relative_error(layer(x), expected) < BOUNDS["float32"]
    assert len({length for length, _ in found}) < len(found)
