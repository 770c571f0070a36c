"""The GPU design spaces: random points, all variants, all activations, random problems; run on the CPU."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuda_checks import assert_right, compute, default_plans, forward_algorithms, lowered_on_cpu
from cuda_on_cpu.execute import Order
from problems import data, specs
from sampling import sampled
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads, same_padding
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve, traits_of

#: Points that are drawn from the spaces of each problem: always, and with the deep tests.
SAMPLE, POINTS = 3, 20

TARGET = "cuda:sm_80"

ORDERS: list[Order] = ["forward", "reverse", ("shuffled", 1)]


def same(size: tuple[int, int, int], channels: int, filters: int, kernel: int, **more: object) -> Conv3DSpec:
    k = (kernel,) * 3
    pads = same_padding(size, k, more.get("strides", (1, 1, 1)), (1, 1, 1))  # type: ignore[arg-type]
    return Conv3DSpec(more.pop("batch", 1), size, channels, filters, k, pads=pads, **more)  # type: ignore[arg-type]


ODD = [
    same((3, 5, 7), 13, 19, 3),
    same((1, 17, 3), 3, 70, 3, data_format=CHANNELS_FIRST, batch=2),
    same((4, 7, 9), 32, 48, 1),
    same((3, 5, 6), 20, 20, 3, groups=20),
    same((4, 9, 9), 24, 12, 3, groups=6, strides=(1, 2, 2)),
    same((3, 5, 7), 16, 24, 3, dtype="float16", post_ops=("relu",)),
    same((3, 4, 5), 24, 40, 2, dtype="bfloat16", data_format=CHANNELS_FIRST),
    same((3, 4, 5), 7, 18, 3, dtype="float16", batch=2),
    same((3, 4, 5), 12, 20, 2, dtype="float64"),
    same((2, 6, 14), 8, 8, 3, data_format=CHANNELS_FIRST, groups=8),
    same((4, 6, 10), 16, 24, 3),
]


@functools.cache
def random_points(spec: Conv3DSpec, count: int) -> list[Plan]:
    """Plans with variants and decisions drawn at random, as MetaSchedule draws them."""
    from tvm.s_tir import Schedule

    traits = traits_of(resolve(TARGET, 1))
    generator = random.Random(spec.key())
    spaces = [(known, found) for known in algorithms("cuda").values() if (found := known.variants(spec, traits))]
    found: dict[str, Plan] = {}
    for seed in range(1, 4 * count):
        # each algorithm as often as the others, however many variants it has
        algorithm, variants = generator.choice(spaces)
        variant = generator.choice(variants)
        schedule = Schedule(algorithm.declare(spec, variant).module(), seed=seed)
        decisions = Decisions(schedule, None)
        algorithm.apply(schedule, spec, variant, decisions)
        plan = Plan(spec, algorithm.name, variant, decisions.taken())
        found.setdefault(plan.describe(), plan)
        if len(found) == count:
            break
    return list(found.values())


COUNTS = [SAMPLE, pytest.param(POINTS, marks=pytest.mark.deep)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("number", range(len(ODD)))
def test_random_points_are_right(number: int, count: int, machine: str) -> None:
    assert_right(random_points(ODD[number], count), order=ORDERS[number % len(ORDERS)], machine=machine)


@pytest.mark.parametrize("count", COUNTS)
def test_random_points_are_many_and_of_all_algorithms(count: int) -> None:
    points = [point for spec in ODD for point in random_points(spec, count)]
    assert len({(point.spec, point.describe()) for point in points}) >= 10 * count
    assert {point.algorithm for point in points} == forward_algorithms()


examples = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@examples
@given(some=st.lists(specs(), min_size=8, max_size=8))
def test_any_problem(some: list[Conv3DSpec], machine: str) -> None:
    assert_right(default_plans(some), machine=machine)


@pytest.mark.deep
@settings(examples, max_examples=12)
@given(some=st.lists(specs(), min_size=8, max_size=8))
def test_many_problems(some: list[Conv3DSpec], machine: str) -> None:
    assert_right(default_plans(some), machine=machine)


def large_specs() -> st.SearchStrategy[Conv3DSpec]:
    """Problems too large for the CPU: many channels, kernels of any length."""
    taps, channels = st.sampled_from((1, 2, 3, 5, 7, 11, 16, 31)), st.sampled_from((1, 16, 48, 100, 256))
    return st.builds(
        Conv3DSpec,
        st.sampled_from((1, 2, 130)),
        st.tuples(*3 * [st.integers(31, 150)]),
        channels,
        channels,
        st.tuples(taps, taps, taps),
        strides=st.tuples(*3 * [st.sampled_from((1, 1, 2, 16))]),
        pads=st.tuples(*3 * [st.builds(Pads, st.integers(0, 15), st.integers(0, 15))]),
        data_format=st.sampled_from((CHANNELS_LAST, CHANNELS_FIRST)),
        dtype=st.sampled_from(("float32", "float32", "float64", "float16", "bfloat16")),
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@settings(examples, max_examples=8)
@given(spec=specs() | large_specs())
def test_any_problem_is_within_the_limits_of_every_architecture(arch: str, spec: Conv3DSpec) -> None:
    assert_within_limits(arch, spec)


@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
@settings(examples, max_examples=40)
@given(spec=specs() | large_specs())
def test_many_problems_are_within_the_limits_of_every_architecture(arch: str, spec: Conv3DSpec) -> None:
    assert_within_limits(arch, spec)


def assert_within_limits(arch: str, spec: Conv3DSpec) -> None:
    """All loops are bound, and `lower` refuses what the GPU would."""
    (plan,) = default_plans([spec], f"cuda:{arch}")
    target = resolve(f"cuda:{arch}", 1)
    assert lower(scheduling.scheduled_module(plan, target), target).functions["main"].launches


@pytest.mark.parametrize(
    ("dtype", "filters"), sampled([("float32", 4), ("float32", 12), ("float16", 4), ("float16", 12)], 3)
)
def test_all_activations(dtype: str, filters: int, machine: str) -> None:
    """By windows where filters are few, else by matrix products, of halves on tensor cores."""
    spec = same((2, 3, 5), 8, filters, 2, dtype=dtype)
    plans = default_plans(replace(spec, post_ops=(name,)) for name in FUSED_ACTIVATIONS)
    wide = "gemm" if dtype == "float32" else "tensor_gemm"
    assert {plan.algorithm for plan in plans} == {"window" if filters == 4 else wide}
    assert_right(plans, machine=machine)


@pytest.mark.parametrize("order", ORDERS[1:], ids=str)
def test_order_of_threads_does_not_matter(order: Order) -> None:
    assert_right(default_plans(ODD), order=order)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("groups", [1, 16])
def test_non_finite_values_reach_exactly_their_windows(value: float, dtype: str, groups: int, machine: str) -> None:
    spec = replace(same((4, 5, 6), 16, 16, 3, dtype=dtype, groups=groups, bias=False), strides=(1, 2, 1))
    (plan,) = default_plans([spec])
    x, kernel, _ = data(spec)
    kernel = np.abs(kernel) + kernel.dtype.type(0.1)
    x[0, 2, 3, 4, 5] = value
    (out,) = compute([plan], [(x, kernel, None)], TARGET, machine=machine)
    touched = np.zeros(spec.input_shape)
    touched[0, 2, 3, 4, 5] = 1
    reached = oracle.convolve(spec, touched, kernel) != 0
    np.testing.assert_array_equal(~np.isfinite(out), reached)


def test_decisions_repeat() -> None:
    """What a schedule took gives the same schedule again."""
    from tvm import ir
    from tvm.s_tir import Schedule

    target = resolve(TARGET, 1)
    for spec in (ODD[0], ODD[5], ODD[3]):
        (plan,) = default_plans([spec])
        algorithm = algorithms("cuda")[plan.algorithm]
        schedule = Schedule(algorithm.declare(spec, plan.variant).module(), seed=7)
        decisions = Decisions(schedule, None)
        algorithm.apply(schedule, spec, plan.variant, decisions)
        again = scheduling.scheduled_module(replace(plan, decisions=decisions.taken()), target)
        ir.assert_structural_equal(algorithm.family.finished(schedule.mod), again)


def test_launches_are_those_of_the_host_code() -> None:
    """The package's reader of launches against the test tool's own."""
    target = resolve(TARGET, 1)
    taken = same((4, 16, 16), 32, 64, 3)
    for plan in default_plans([ODD[0], ODD[5], replace(ODD[3], bias=False), taken]):
        module = scheduling.scheduled_module(plan, target)
        ours, theirs = lower(module, target), lowered_on_cpu(module, target)
        assert ours.source == theirs.source
        main = ours.functions["main"]
        for a, b in zip(main.launches, theirs.launches, strict=True):
            assert (a.kernel, a.grid, a.block, a.shared) == (b.kernel, b.grid, b.block, b.dynamic_shared_bytes)
            assert a.arguments == b.arguments
        assert list(main.workspaces) == [buffer.name for buffer in theirs.workspaces]


@pytest.mark.parametrize(
    "spec",
    [
        same((1, 1, 1), 1, 1, 1, batch=70000, data_format=CHANNELS_FIRST),
        same((4, 4, 4), 70000, 70000, 1, groups=70000),
        Conv3DSpec(1, (300, 600, 600), 4, 4, (3, 3, 3), pads=(Pads(1, 1),) * 3),
        Conv3DSpec(1, (300, 600, 600), 16, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, dtype="float16"),
        Conv3DSpec(1, (600, 600, 600), 16, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, dtype="float16"),
        Conv3DSpec(1, (600, 600, 600), 20, 20, (3, 3, 3), pads=(Pads(1, 1),) * 3, groups=20),
        Conv3DSpec(3, (600, 600, 600), 20, 20, (3, 3, 3), pads=(Pads(1, 1),) * 3, data_format=CHANNELS_FIRST),
        Conv3DSpec(1, (600, 600, 600), 20, 20, (1, 1, 1), groups=20),
        Conv3DSpec(2, (600, 600, 600), 20, 20, (1, 1, 1), groups=20, data_format=CHANNELS_FIRST),
    ],
    ids=lambda spec: spec.key(),
)
def test_large_problems_stay_within_the_limits_of_a_launch(spec: Conv3DSpec) -> None:
    target = resolve(TARGET, 1)
    (plan,) = default_plans([spec])
    code = lower(scheduling.scheduled_module(plan, target), target)
    for launch in code.functions["main"].launches:
        assert np.prod(launch.block) <= 1024
        assert launch.grid[0] < 2**31 and max(launch.grid[1:]) < 2**16
    elements = max(np.prod(spec.input_shape), np.prod(spec.output_shape))
    # 32 bits count the elements of the smaller ones, and are faster
    kernel = code.source[code.source.rindex("__global__") :]
    assert ("int64_t" in kernel) == (elements >= 2**31), kernel


@pytest.mark.parametrize(
    ("name", "spec"), [("gemm", ODD[0]), ("tensor_gemm", ODD[5]), ("window", ODD[4]), ("winograd_gemm", ODD[10])]
)
def test_the_search_takes_these_spaces(name: str, spec: Conv3DSpec) -> None:
    """MetaSchedule's evolutionary search replays their traces, learns from costs, and proposes further points."""
    pytest.importorskip("xgboost", reason="tuning needs xgboost")
    from tvm_conv3d.tuning.measurement_host import Trial
    from tvm_conv3d.tuning.space import CostModel, Space

    target = resolve(TARGET, 1)
    algorithm = algorithms("cuda")[name]
    variant = algorithm.variants(spec, traits_of(target))[0]
    space = Space(spec, target, algorithm, variant, CostModel(1), 1)
    default = space.point({})
    space.teach([Trial(default, 1e-3)])
    proposed = space.propose(4)
    assert proposed
    space.learn([Trial(point, 2e-3) for point in proposed])
    assert all(point.decisions.keys() == default.decisions.keys() for point in proposed)
    assert_right(proposed)
