"""Winograd's algorithm: right in all modes, within its stated error, and never trusted with NaN or infinity."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from problems import data, run_plan
from sampling import sampled
from tvm_conv3d import Conv3D
from tvm_conv3d.compute.llvm.winograd import WinogradVariant, error_bound
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.compute.shared.winograd_axes import axes_of
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import executor, interchange
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.schedules.llvm.costs import winograd
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, NO_PADS, Conv3DSpec, Triple, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target


def dense(size: Triple, channels: int, filters: int, kernel: Triple, **more: object) -> Conv3DSpec:
    strides = more.get("strides", (1, 1, 1))
    dilation = more.get("dilation", (1, 1, 1))
    pads = same_padding(size, kernel, strides, dilation)  # type: ignore[arg-type]
    return Conv3DSpec(1, size, channels, filters, kernel, pads=pads, **more)  # type: ignore[arg-type]


def relative_error(spec: Conv3DSpec, variant: WinogradVariant) -> float:
    return run_plan(Plan(spec, "winograd", variant, {"unroll": 1}))


VARIANTS = [
    (
        "staged",
        dense((6, 9, 10), 20, 24, (3, 3, 3)),
        WinogradVariant("ppp", (4, 2, 4), (1, 2, 3), 16, 1, 3, staged=True),
    ),
    (
        "staged, dilated",
        dense((7, 8, 6), 16, 16, (3, 3, 1), dilation=(1, 2, 1)),
        WinogradVariant("pdp", (1, 2, 1), (2, 1, 3), 16, 1, 3, staged=True),
    ),
    ("dense", dense((6, 9, 10), 16, 32, (3, 3, 3)), WinogradVariant("ppp", (4, 4, 4), (1, 1, 3), 16, 2, 3)),
    ("odd channels", dense((5, 7, 9), 13, 21, (3, 3, 3)), WinogradVariant("ppp", (2, 3, 4), (2, 2, 3), 16, 1, 4)),
    ("spatial", dense((3, 9, 11), 16, 16, (1, 3, 3)), WinogradVariant("ppp", (1, 4, 6), (1, 2, 2), 16, 1, 2)),
    ("temporal", dense((9, 4, 5), 16, 16, (3, 1, 1)), WinogradVariant("ppp", (4, 1, 1), (2, 1, 7), 16, 1, 7)),
    ("5x5x5", dense((6, 8, 9), 8, 16, (5, 5, 5)), WinogradVariant("ppp", (2, 2, 4), (1, 2, 2), 8, 2, 4)),
    ("2x2x2", dense((6, 8, 9), 8, 16, (2, 2, 2)), WinogradVariant("ppp", (4, 4, 5), (1, 1, 2), 8, 1, 2)),
    ("7x7x7", dense((7, 7, 7), 3, 16, (7, 7, 7)), WinogradVariant("ppp", (2, 2, 2), (1, 1, 2), 16, 1, 2)),
    ("folded depth", dense((2, 8, 9), 16, 16, (3, 3, 3)), WinogradVariant("fpp", (1, 4, 4), (2, 2, 3), 16, 1, 6)),
    (
        "strided",
        dense((7, 11, 12), 5, 16, (3, 7, 7), strides=(1, 2, 2)),
        WinogradVariant("pss", (4, 2, 4), (1, 2, 2), 16, 1, 2),
    ),
    (
        "strided, stride does not divide",
        dense((8, 9, 10), 4, 16, (3, 4, 5), strides=(2, 3, 2)),
        WinogradVariant("sss", (2, 2, 3), (1, 1, 2), 16, 1, 2),
    ),
    (
        "polyphase",
        dense((9, 11, 12), 20, 24, (3, 3, 3), strides=(2, 2, 2)),
        WinogradVariant("yyy", (2, 4, 3), (1, 2, 2), 16, 1, 4),
    ),
    (
        "polyphase, folded and strided",
        dense((7, 13, 10), 16, 16, (3, 5, 7), strides=(2, 2, 3)),
        WinogradVariant("fys", (1, 3, 2), (2, 1, 2), 16, 1, 2),
    ),
    (
        "dilated depth",
        dense((9, 8, 8), 8, 16, (3, 3, 3), dilation=(2, 1, 1)),
        WinogradVariant("fpp", (1, 4, 4), (3, 1, 2), 16, 1, 2),
    ),
    (
        "dilated, in parts",
        dense((8, 9, 12), 13, 16, (3, 3, 3), dilation=(2, 1, 3)),
        WinogradVariant("dpd", (2, 4, 3), (1, 2, 2), 16, 1, 4),
    ),
    (
        "all axes in parts",
        dense((6, 6, 10), 16, 16, (3, 2, 3), dilation=(2, 3, 5)),
        WinogradVariant("ddd", (3, 2, 2), (1, 1, 1), 16, 1, 1),
    ),
    (
        "parts that differ in size",
        dense((7, 9, 11), 13, 20, (3, 3, 3), dilation=(2, 2, 3)),
        WinogradVariant("ddd", (2, 3, 2), (2, 1, 2), 16, 1, 4),
    ),
    (
        "parts that differ in size, staged",
        dense((5, 9, 8), 16, 16, (1, 3, 3), dilation=(1, 2, 2)),
        WinogradVariant("pdd", (1, 3, 2), (2, 1, 2), 16, 1, 4, staged=True),
    ),
    (
        "parts that differ in size, one of them empty",
        dense((5, 8, 3), 16, 16, (1, 3, 3), dilation=(1, 1, 4)),
        WinogradVariant("ppd", (1, 3, 2), (2, 1, 1), 16, 1, 2),
    ),
    ("all folded", dense((5, 6, 7), 3, 16, (3, 2, 3)), WinogradVariant("fff", (1, 1, 1), (1, 2, 7), 16, 1, 7)),
]


@pytest.mark.parametrize(
    ("case", "data_format"),
    sampled(itertools.product(VARIANTS, (CHANNELS_LAST, CHANNELS_FIRST)), 3),
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_all_modes(case: tuple[str, Conv3DSpec, WinogradVariant], data_format: str) -> None:
    _, spec, variant = case
    spec = replace(spec, data_format=data_format, batch=2)
    assert relative_error(spec, variant) < max(1.5 * error_bound(canonicalize(spec), variant), 2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype: str) -> None:
    spec = dense((6, 9, 10), 16, 32, (3, 3, 3), dtype=dtype)
    variant = WinogradVariant("ppp", (4, 4, 4), (1, 1, 3), 16, 2, 3)
    assert relative_error(spec, variant) < 1.5 * error_bound(canonicalize(spec), variant)


@pytest.mark.parametrize("modes", ["ppp", "pss", "fss"])
def test_modes_must_suit(modes: str) -> None:
    with pytest.raises(ValueError, match="needs another stride or dilation"):
        axes_of(canonicalize(dense((8, 8, 8), 16, 16, (3, 3, 3), strides=(2, 1, 1), dilation=(1, 2, 2))), modes)


def big(**more: object) -> Conv3DSpec:
    return dense((8, 14, 14), 32, 32, (3, 3, 3), **more)


def modes_of(spec: Conv3DSpec) -> str:
    """The modes of the default's axes."""
    found = winograd.default(canonicalize(spec), cpu_traits(host_target(2)))
    assert found is not None
    return found[0].modes


def test_few_channels_take_the_taps_of_an_axis_as_channels() -> None:
    assert "f" in modes_of(dense((16, 64, 64), 2, 96, (5, 5, 5)))
    assert "f" not in modes_of(dense((16, 64, 64), 24, 96, (5, 5, 5)))


def test_the_default_takes_it_where_it_pays() -> None:
    target = host_target(2)
    assert make_plan(big(), target).algorithm == "winograd"
    assert make_plan(big(), target, exact=True).algorithm == "direct"
    assert make_plan(replace(big(), dilation=(2, 2, 2), pads=((2, 2),) * 3), target).algorithm == "winograd"  # type: ignore[arg-type]
    odd = dense((9, 23, 19), 64, 32, (3, 3, 3), dilation=(2, 2, 2))
    assert modes_of(odd) == "ddd"
    for spec in (
        big(dtype="float64"),
        big(groups=32),
        replace(big(), kernel=(1, 1, 1), pads=NO_PADS),
        dense((16, 28, 28), 8, 2, (3, 3, 3)),
    ):
        assert make_plan(spec, target).algorithm != "winograd", spec.key()


def test_default_plans_keep_the_stated_error() -> None:
    target = host_target(2)
    for spec in (big(), dense((9, 15, 13), 24, 40, (3, 3, 3)), dense((8, 16, 16), 32, 32, (5, 5, 5))):
        plan = make_plan(spec, target)
        assert plan.algorithm == "winograd"
        assert plan.error_bound <= winograd.ERROR_LIMIT
        for seed, make in enumerate((normal, large_range, constant, one_hot)):
            x, kernel, bias = make(spec, seed)
            result = executor.Executor().convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
            expected = oracle.convolve(spec, x, kernel, bias)
            assert oracle.relative_error(result, expected) < 1e-5, (spec.key(), make.__name__)


def normal(spec: Conv3DSpec, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, kernel, bias = data(spec, seed)
    assert bias is not None
    return x, kernel, bias


def large_range(spec: Conv3DSpec, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, kernel, bias = normal(spec, seed)
    return x * np.float32(1e6), kernel * np.float32(1e-3), bias


def constant(spec: Conv3DSpec, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, kernel, bias = normal(spec, seed)
    return np.full(spec.input_shape, 3, np.float32), np.abs(kernel), bias


def one_hot(spec: Conv3DSpec, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, kernel, bias = normal(spec, seed)
    hot = np.zeros_like(x)
    hot[0, 3, 4, 5, 6] = 1
    return hot, kernel, bias


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid"])
def test_what_is_not_finite_is_as_by_the_definition(value: float, activation: str) -> None:
    spec = big(post_ops=(activation,))
    x, kernel, bias = normal(spec, 0)
    kernel += np.sign(kernel)
    x[0, 2, 3, 4, 5] = value
    result = executor.Executor().convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    strict = executor.Executor(accuracy="strict").convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    finite = np.isfinite(strict)
    np.testing.assert_array_equal(result[~finite], strict[~finite])
    assert oracle.relative_error(result[finite], strict[finite]) < 1e-4
    if activation == "linear":
        assert not np.isfinite(result).all()
        touched = np.zeros(spec.input_shape)
        touched[0, 2, 3, 4, 5] = 1
        reached = oracle.convolve(replace(spec, bias=False), touched, np.ones_like(kernel)) != 0
        assert np.isfinite(result[~reached]).all()


@pytest.mark.parametrize("taps", [8, 9, 12, 16])
def test_there_are_no_points_for_long_kernels(taps: int) -> None:
    """Axes with more taps than points do without a transform, and the layer still has a plan."""
    spec = dense((6, 6, 18), 4, 16, (2, 2, taps))
    x, kernel, bias = normal(spec, 0)
    result = executor.Executor().convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    assert oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias)) < 1e-5


def test_a_layer_can_be_strict() -> None:
    strict = Conv3D(32, 3, padding="same", accuracy="strict")
    assert strict.plan_for((1, 8, 14, 14, 32)).algorithm == "direct"
    assert Conv3D.from_config(strict.get_config()).plan_for((1, 8, 14, 14, 32)).algorithm == "direct"
    assert Conv3D(32, 3, padding="same").plan_for((1, 8, 14, 14, 32)).algorithm == "winograd"
    with pytest.raises(ValueError, match="default, strict"):
        Conv3D(32, 3, accuracy="exact")


def test_tiles_leave_a_task_for_every_thread() -> None:
    traits = cpu_traits(host_target(2))
    for candidate in winograd.priced(canonicalize(dense((16, 28, 28), 64, 64, (3, 3, 3))), traits)[:5]:
        variant = candidate.variant
        assert np.prod(variant.block) % variant.columns == 0
        assert variant.columns * variant.vectors + variant.vectors + 1 <= traits.registers
