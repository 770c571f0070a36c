"""Winograd's algorithm on GPUs: its numbers, its stated error, NaN and infinity, its memory, and when it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuda_checks import Data, assert_right, compute, default_plans
from cuda_fakes import FakeCupy, FakeDriver, GpuArray, fake_gpu
from cuda_on_cpu.execute import Order
from problems import WINOGRAD_BOUND, data
from tvm_conv3d.compute.cuda.winograd_gemm import WinogradGemmVariant
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import planner, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.schedules.cuda.costs import winograd
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads, same_padding
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

TARGET = "cuda:sm_80"

#: Cells and filters of a tile of the product, its step and its threads.
SMALL = (32, 32, 8, 8, 8)

BASE = Conv3DSpec(1, (4, 5, 6), 16, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3)

#: A layer that takes it by default, small enough to be run thread by thread.
TAKEN = Conv3DSpec(1, (4, 16, 16), 32, 64, (3, 3, 3), pads=(Pads(1, 1),) * 3)


def like_base(kernel: tuple[int, int, int], **more: object) -> Conv3DSpec:
    strides, dilation = more.get("strides", (1, 1, 1)), more.get("dilation", (1, 1, 1))
    size = more.setdefault("size", BASE.size)
    pads = same_padding(size, kernel, strides, dilation)  # type: ignore[arg-type]
    return replace(BASE, kernel=kernel, pads=pads, **more)  # type: ignore[arg-type]


def planned(spec: Conv3DSpec, modes: str, tile: tuple[int, int, int]) -> Plan:
    return Plan(spec, "winograd_gemm", WinogradGemmVariant(modes, tile, *SMALL), {})


def run(plan: Plan, given: Data, machine: str) -> np.ndarray:
    (out,) = compute([plan], [given], TARGET, machine=machine)
    return out


CASES = [
    (BASE, "ppp", (2, 2, 2)),
    (BASE, "ppp", (1, 2, 4)),
    (replace(BASE, batch=2, data_format=CHANNELS_FIRST, post_ops=("relu",)), "ppp", (1, 3, 2)),
    (replace(BASE, channels=5, filters=70, pads=(Pads(2, 0), Pads(1, 2), Pads(0, 1)), batch=3), "ppp", (2, 2, 2)),
    (like_base((3, 1, 1)), "ppp", (4, 1, 1)),
    (like_base((1, 3, 3), batch=2, bias=False), "ppp", (1, 4, 4)),
    (like_base((5, 5, 5)), "ppp", (1, 2, 2)),
    (like_base((14, 3, 1), size=(14, 4, 2)), "ppp", (1, 2, 1)),
    (like_base((2, 4, 3), data_format=CHANNELS_FIRST), "ppp", (1, 2, 3)),
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, size=(4, 6, 8), post_ops=("add", "relu")), "ppp", (1, 2, 4)),
    # vectors of four and of two along the width; windows that begin before, in and at the end of a vector
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, size=(3, 5, 6), batch=2), "ppp", (2, 2, 4)),
    (
        replace(BASE, data_format=CHANNELS_FIRST, size=(3, 5, 8), pads=(Pads(1, 2), Pads(0, 1), Pads(0, 2))),
        "ppp",
        (1, 4, 4),
    ),
    (
        replace(BASE, data_format=CHANNELS_FIRST, size=(3, 5, 8), pads=(Pads(1, 1), Pads(3, 0), Pads(2, 3))),
        "ppp",
        (2, 2, 2),
    ),
    (like_base((1, 3, 5), data_format=CHANNELS_FIRST, size=(2, 6, 12), channels=13), "ppp", (1, 2, 4)),
    (like_base((3, 3, 1), data_format=CHANNELS_FIRST, size=(4, 6, 8)), "ppp", (2, 2, 1)),
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, dilation=(2, 2, 1), size=(4, 8, 8)), "ddp", (1, 2, 4)),
    # a plane that is too large to be moved whole, rows of which have vectors of two
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, size=(2, 12, 22)), "ppp", (2, 4, 4)),
    # whole planes: rows of odd length, all parts of a width, depth's taps left to the product, tiles that do not fit
    (
        like_base((3, 3, 3), data_format=CHANNELS_FIRST, size=(4, 7, 7), batch=2, post_ops=("add", "relu")),
        "ppp",
        (1, 4, 4),
    ),
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, size=(5, 6, 10), channels=13), "ppp", (2, 2, 4)),
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, dilation=(2, 2, 2), size=(4, 8, 8), batch=2), "ddd", (1, 2, 4)),
    (like_base((3, 2, 3), data_format=CHANNELS_FIRST, dilation=(1, 2, 3), size=(4, 4, 9)), "pdd", (2, 2, 3)),
    (
        replace(BASE, data_format=CHANNELS_FIRST, size=(3, 5, 9), pads=(Pads(0, 2), Pads(3, 0), Pads(2, 3))),
        "ppp",
        (1, 4, 4),
    ),
    (like_base((3, 3, 3), data_format=CHANNELS_FIRST, strides=(1, 2, 2)), "pss", (1, 2, 2)),
    (like_base((3, 3, 3), strides=(1, 2, 2)), "pss", (1, 2, 2)),
    (like_base((3, 3, 3), strides=(2, 2, 1)), "fsp", (1, 2, 4)),
    (like_base((3, 3, 3), strides=(2, 1, 1), batch=2), "spp", (1, 2, 2)),
    (like_base((3, 3, 3), dilation=(1, 2, 2), size=(4, 8, 8)), "pdd", (1, 2, 2)),
    (like_base((3, 3, 3), dilation=(2, 2, 3), size=(4, 8, 7), batch=2), "ddf", (1, 4, 1)),
]


def test_modes_and_tiles(machine: str) -> None:
    assert_right([planned(*case) for case in CASES], machine=machine)


def test_order_of_threads_does_not_matter() -> None:
    for order in ("reverse", ("shuffled", 1)):
        assert_right([planned(*case) for case in (*CASES[:4], *CASES[10:14], *CASES[16:22])], order=order)


@pytest.mark.parametrize("order", ["forward", "reverse", ("shuffled", 4)], ids=str)
def test_copies_that_run_ahead_are_right(order: Order) -> None:
    """Over the steps of one tap, and over those of an untransformed depth's taps as one loop."""
    plans = [
        replace(plan, variant=replace(plan.variant, stages=stages))
        for case, stages in ((CASES[0], 2), (CASES[1], 2), (CASES[2], 3), (CASES[9], 3), (CASES[13], 2))
        for plan in [planned(*case)]
    ]
    assert_right(plans, order=order)


def test_copies_run_ahead_while_tuning_where_they_are_asynchronous() -> None:
    for arch, traits in ARCHITECTURES.items():
        found = winograd.variants(canonicalize(TAKEN), traits)
        assert found[0] == winograd.candidates(canonicalize(TAKEN), traits)[0] and found[0].stages == 1
        ahead = [variant for variant in found if variant.stages > 1]
        assert bool(ahead) == (traits.arch >= 80), arch
    target = resolve(TARGET, 1)
    ahead = next(
        variant for variant in winograd.variants(canonicalize(TAKEN), ARCHITECTURES["sm_80"]) if variant.stages > 1
    )
    plan = replace(default_plan(TAKEN, target), variant=ahead)
    source = lower(scheduling.scheduled_module(plan, target), target).source
    assert "cp_async" in source.partition("main_kernel_1")[2]
    assert_right([plan])


def test_a_default_plan_is_right(machine: str) -> None:
    (plan,) = default_plans([TAKEN])
    assert plan.algorithm == "winograd_gemm"
    assert_right([plan], machine=machine)


def test_default_plans_of_all_layers_keep_their_bound() -> None:
    taken = 0
    for arch in ARCHITECTURES:
        for layer in read_csv(LAYERS):
            plan = default_plan(layer.spec, resolve(f"cuda:{arch}", 1))
            assert plan.error_bound < WINOGRAD_BOUND
            taken += plan.algorithm == "winograd_gemm"
    assert taken > 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("modes", "tile"), [("ppp", (2, 2, 2)), ("ppp", (1, 4, 4))])
def test_non_finite_values_reach_exactly_their_windows(
    value: float, modes: str, tile: tuple[int, int, int], machine: str
) -> None:
    plan = planned(replace(BASE, bias=False), modes, tile)
    x, kernel, _ = data(plan.spec)
    kernel = np.abs(kernel) + np.float32(0.1)
    before = run(plan, (x, kernel, None), machine)
    x[0, 2, 3, 4, 5] = value
    result = run(plan, (x, kernel, None), machine)
    touched = np.zeros(plan.spec.input_shape)
    touched[0, 2, 3, 4, 5] = 1
    reached = oracle.convolve(plan.spec, touched, kernel) != 0
    np.testing.assert_array_equal(~np.isfinite(result), reached)
    np.testing.assert_allclose(result[~reached], before[~reached], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float, machine: str) -> None:
    """As the definition has it, with the sign of infinity; zeros of the padding times infinity are NaN."""
    plan = planned(BASE, "ppp", (1, 2, 4))
    x, kernel, bias = data(BASE)
    kernel[0, 1, 2, 3, 5] = value
    result = run(plan, (x, kernel, bias), machine)
    with np.errstate(invalid="ignore"):
        expected = oracle.convolve(BASE, x, kernel, bias)
    assert not np.isfinite(expected[..., 5]).any()
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(result), np.isposinf(expected))
    assert np.isfinite(np.delete(result, 5, axis=-1)).all()


def test_sums_that_overflow_in_a_transform_only(machine: str) -> None:
    plan = planned(replace(BASE, bias=False), "ppp", (1, 4, 4))
    x, kernel, _ = data(plan.spec)
    x[0, 1, 1, 1, :] = np.float32(2e38)
    kernel /= 32
    result = run(plan, (x, kernel, None), machine)
    expected = oracle.convolve(plan.spec, x, kernel)
    assert np.abs(expected).max() < 3e38
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_finite_tiles_pay_no_direct_loop() -> None:
    """The loop over taps and channels stands under one condition of the whole tile."""
    target = resolve(TARGET, 1)
    source = lower(scheduling.scheduled_module(planned(BASE, "ppp", (2, 2, 2)), target), target).source
    last = source[source.rindex("__global__") :]
    guard = last.index("if (bad")
    assert "for (" not in last[:guard]
    assert last[guard:].partition("{")[2].lstrip().startswith("for (")


def test_strict_accuracy_never_takes_it() -> None:
    assert make_plan(TAKEN, resolve(TARGET, 1)).algorithm == "winograd_gemm"
    assert make_plan(TAKEN, resolve(TARGET, 1), exact=True).algorithm == "gemm"
    assert Executor(TARGET, accuracy="strict").plan_for(TAKEN).algorithm == "gemm"


def test_it_is_no_choice_for_other_types_and_groups() -> None:
    known = algorithms("cuda")["winograd_gemm"]
    for spec in (replace(TAKEN, dtype="float16"), replace(TAKEN, dtype="float64"), replace(TAKEN, groups=2)):
        assert known.variants(spec, ARCHITECTURES["sm_80"]) == []
        with pytest.raises(ValueError, match="one group of float32"):
            known.declare(spec, WinogradGemmVariant("ppp", (1, 2, 2), *SMALL))
    with pytest.raises(ValueError, match="Only depth may have taps and no transform"):
        known.declare(TAKEN, WinogradGemmVariant("ppp", (2, 2, 1), *SMALL))
    with pytest.raises(ValueError, match="whole parts"):
        known.declare(
            replace(TAKEN, dilation=(1, 2, 1), size=(4, 13, 8)), WinogradGemmVariant("pdp", (1, 2, 2), *SMALL)
        )


def test_memory_between_kernels_is_counted_and_limited() -> None:
    target = resolve(TARGET, 1)
    (plan,) = default_plans([TAKEN])
    needed = planner.bytes_per_thread(plan, target)
    assert (
        needed
        == sum(lower(scheduling.scheduled_module(plan, target), target).functions["main"].workspaces.values())
        > 0
    )
    assert make_plan(TAKEN, target, workspace_limit=needed) == plan
    assert make_plan(TAKEN, target, workspace_limit=needed - 1).algorithm == "gemm"


def test_dearer_than_the_matrix_product_where_it_moves_more_than_it_saves() -> None:
    traits = ARCHITECTURES["sm_90"]
    temporal = Conv3DSpec(1, (16, 56, 56), 64, 64, (3, 1, 1), pads=(Pads(1, 1), Pads(0, 0), Pads(0, 0)))
    assert winograd.candidates(canonicalize(temporal), traits)
    assert make_plan(temporal, resolve("cuda:sm_90", 1)).algorithm == "gemm"


@pytest.mark.parametrize(("kernel", "depths"), [((1, 1, 11), set()), ((3, 16, 1), set()), ((31, 3, 3), {1})])
def test_kernels_too_long_for_a_transform(kernel: tuple[int, int, int], depths: set[int]) -> None:
    """Along depth the product sums their taps; along other axes Winograd is no choice."""
    spec = like_base(kernel, size=(32, 40, 40), channels=64, filters=64)
    found = winograd.candidates(canonicalize(spec), ARCHITECTURES["sm_80"])
    assert {variant.tile[0] for variant in found} == depths
    assert default_plans([spec])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with fake_gpu(monkeypatch) as fake:
        yield fake


def test_calls_bring_the_memory_between_kernels(gpu: FakeDriver) -> None:
    x, kernel, bias = data(TAKEN)
    executor = Executor(TARGET)
    expected = oracle.convolve(TAKEN, x, kernel, bias)
    result = executor.convolve(TAKEN, interchange.wrap(x), Weights(kernel, bias, 0))
    assert oracle.relative_error(result, expected) < WINOGRAD_BOUND
    # the weights stay, the rest was freed
    assert len(gpu.memory) == 2
    there = executor.convolve(TAKEN, interchange.wrap(GpuArray(gpu, x)), Weights(kernel, bias, 0))
    assert oracle.relative_error(there.array, expected) < WINOGRAD_BOUND
    assert [stream for _, stream in gpu.launched] == (2 + 3) * [0] + 3 * [FakeCupy.STREAM]
