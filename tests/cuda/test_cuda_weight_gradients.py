"""The gradients of weights and biases on GPUs: any problem, in any order of threads, against the float64 oracle."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuda_gradients import assert_gradients_right, gradient_plans, gradients, read_by
from cuda_on_cpu.execute import Order
from gradient_cases import SHAPES
from problems import specs
from tvm_conv3d.engine import planner, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve, traits_of

TARGET = resolve("cuda:sm_80", 1)

FORMATS = [CHANNELS_LAST, CHANNELS_FIRST]

ORDERS: list[Order] = ["forward", "reverse", ("shuffled", 3)]

ALGORITHMS = sorted(name for name, algorithm in algorithms("cuda").items() if algorithm.of_weights)

#: Pads that crop, windows that do not reach the input's end; positions that leave a rest in steps and in parts.
ODD = Conv3DSpec(2, (6, 7, 9), 12, 20, (3, 2, 2), (1, 2, 1), (1, 1, 2), (Pads(1, 0), Pads(-1, 1), Pads(0, 2)))

examples = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@examples
@given(some=st.lists(specs(), min_size=8, max_size=8), order=st.sampled_from(ORDERS))
def test_any_problem(some: list[Conv3DSpec], order: Order, machine: str) -> None:
    assert_gradients_right(gradient_plans(some), order=order, machine=machine)


@pytest.mark.deep
@settings(examples, max_examples=15)
@given(some=st.lists(specs(), min_size=8, max_size=8), order=st.sampled_from(ORDERS))
def test_many_problems(some: list[Conv3DSpec], order: Order, machine: str) -> None:
    assert_gradients_right(gradient_plans(some), order=order, machine=machine)


@pytest.mark.parametrize("data_format", FORMATS)
def test_kinds_of_layers(data_format: str, machine: str) -> None:
    layers = [replace(spec, data_format=data_format) for spec in SHAPES.values()]
    assert_gradients_right(gradient_plans(layers), machine=machine)


@pytest.mark.parametrize("data_format", FORMATS)
def test_groups_by_every_variant(data_format: str, machine: str) -> None:
    """Windows of one column and of several, strided, dilated, long and short; parts that hold nothing; odd filters."""
    base = replace(ODD, channels=6, filters=6, groups=6, dilation=(1, 1, 1), data_format=data_format)
    layers = [
        base,
        replace(base, filters=12, strides=(2, 1, 2), kernel=(1, 2, 3)),
        replace(base, dilation=(1, 1, 2), groups=3, filters=9),
        replace(base, kernel=(2, 1, 17), size=(3, 4, 18), pads=(Pads(0, 0), Pads(0, 0), Pads(2, 1))),
        replace(base, channels=131, filters=131, groups=131, size=(3, 4, 5), bias=False),
    ]
    plans = [
        Plan(plan.spec, name, variant, {})
        for plan in gradient_plans(layers)
        for name in ALGORITHMS
        for variant in algorithms("cuda")[name].variants(plan.spec, traits_of(TARGET))[: 1 if "gemm" in name else None]
    ]
    assert {plan.variant.columns for plan in plans if "window" in plan.algorithm} > {1}
    assert_gradients_right(plans, order="reverse", machine=machine)


@pytest.mark.parametrize("data_format", FORMATS)
def test_types(data_format: str, machine: str) -> None:
    layers = [
        replace(ODD, dtype=dtype, data_format=data_format, groups=groups)
        for dtype in ("float16", "bfloat16", "float64")
        for groups in (1, 4)
    ]
    assert_gradients_right(gradient_plans(layers), order="reverse", machine=machine)


@functools.cache
def random_points(spec: Conv3DSpec, count: int) -> list[Plan]:
    """Plans with variants and decisions drawn at random, as MetaSchedule draws them."""
    from tvm.s_tir import Schedule

    (plan,) = gradient_plans([spec])
    generator = random.Random(spec.key())
    known = [algorithms("cuda")[name] for name in ALGORITHMS]
    choices = [(a, variant) for a in known for variant in a.variants(plan.spec, traits_of(TARGET))]
    found = []
    for seed in range(1, count + 1):
        algorithm, variant = generator.choice(choices)
        schedule = Schedule(algorithm.declare(plan.spec, variant).module(), seed=seed)
        decisions = Decisions(schedule, None)
        algorithm.apply(schedule, plan.spec, variant, decisions)
        found.append(Plan(plan.spec, algorithm.name, variant, decisions.taken()))
    return found


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.deep)])
@pytest.mark.parametrize("number", range(3))
def test_random_points_are_right(number: int, count: int, machine: str) -> None:
    spec = (
        replace(ODD, data_format=CHANNELS_FIRST, channels=9),
        replace(ODD, groups=4),
        replace(ODD, dtype="float16", groups=2, data_format=CHANNELS_FIRST),
    )[number]
    assert_gradients_right(random_points(spec, count), order=ORDERS[number], machine=machine)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_search_takes_these_spaces(name: str) -> None:
    """MetaSchedule's evolutionary search replays their traces, learns from costs, and proposes further points."""
    pytest.importorskip("xgboost", reason="tuning needs xgboost")
    from tvm_conv3d.tuning.measurement_host import Trial
    from tvm_conv3d.tuning.space import CostModel, Space

    (plan,) = gradient_plans([replace(ODD, groups=2)])
    algorithm = algorithms("cuda")[name]
    space = Space(plan.spec, TARGET, algorithm, algorithm.variants(plan.spec, traits_of(TARGET))[0], CostModel(1), 1)
    space.teach([Trial(space.point({}), 1e-3)])
    proposed = space.propose(3)
    assert proposed
    assert_gradients_right(proposed)


@pytest.mark.parametrize("data_format", FORMATS)
def test_no_bit_depends_on_the_order_of_threads(data_format: str) -> None:
    """Parts are added in their order."""
    (plan,) = gradient_plans([replace(ODD, data_format=data_format, size=(8, 8, 8))])
    assert plan.variant.parts > 1
    first, *others = [next(gradients([plan], [read_by(plan)], order=order)) for order in ORDERS]
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_what_is_not_finite_reaches_its_weights_only(value: float, groups: int) -> None:
    spec = Conv3DSpec(1, (4, 5, 6), 8, 12, (2, 3, 1), (1, 2, 1), pads=(Pads(0, 1),) * 3, groups=groups)
    (plan,) = gradient_plans([spec])
    for into in ("x", "gradient"):
        given = {name: array.copy() for name, array in read_by(plan).items()}
        given[into][0, 0, 1, 0, 5] = value
        found = next(gradients([plan], [given]))
        with np.errstate(invalid="ignore"):
            wanted, of_bias = oracle.weight_gradient(plan.spec, given["x"], given["gradient"])
        finite = np.isfinite(wanted)
        assert 0 < finite.sum() < finite.size
        np.testing.assert_array_equal(found["out"][~finite], wanted[~finite])
        np.testing.assert_allclose(found["out"][finite], wanted[finite], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(np.isfinite(found["bias_gradient"]), np.isfinite(of_bias))


@pytest.mark.parametrize("data_format", FORMATS)
def test_long_sums_are_as_exact_as_short_ones(data_format: str) -> None:
    """Equal products, whose roundings all have one sign: of so many as a GPU sums at once they are 3e-5 off."""
    spec = Conv3DSpec(1, (8, 48, 48), 1, 16, (1, 1, 1), data_format=data_format)
    (plan,) = gradient_plans([spec])
    whole = replace(plan, variant=replace(plan.variant, parts=1))
    given = {"x": np.full(spec.input_shape, 0.1, "f4"), "gradient": np.full(spec.output_shape, 0.3, "f4")}
    for found in gradients([plan, whole], [given, given]):
        count = 8 * 48 * 48 * np.float64(np.float32(0.3))
        np.testing.assert_allclose(found["out"], count * np.float64(np.float32(0.1)), rtol=4e-5)
        np.testing.assert_allclose(found["bias_gradient"], count, rtol=4e-5)


def test_memory_of_parts_is_counted_and_limited() -> None:
    # without a bias, whose sums may lie where those of weights were
    (plan,) = gradient_plans([Conv3DSpec(2, (32, 32, 32), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)])
    needed = planner.bytes_per_thread(plan, TARGET)
    launches = lower(scheduling.scheduled_module(plan, TARGET), TARGET).functions["main"]
    assert needed == sum(launches.workspaces.values()) > 0
    less = planner.make_plan(plan.spec, TARGET, workspace_limit=needed - 1)
    assert planner.bytes_per_thread(less, TARGET) < needed


def large_specs() -> st.SearchStrategy[Conv3DSpec]:
    """Problems too large for the CPU."""
    taps, channels = st.sampled_from((1, 3, 7, 16)), st.sampled_from((1, 16, 100, 256))
    return st.builds(
        Conv3DSpec,
        st.sampled_from((1, 2, 130)),
        st.tuples(*3 * [st.integers(16, 150)]),
        channels,
        channels,
        st.tuples(taps, taps, taps),
        strides=st.tuples(*3 * [st.sampled_from((1, 2, 16))]),
        data_format=st.sampled_from(FORMATS),
        dtype=st.sampled_from(("float32", "float64", "float16")),
    )


@pytest.mark.parametrize("arch", ["sm_75", pytest.param("sm_86", marks=pytest.mark.deep), "sm_90"])
@settings(examples, max_examples=4)
@given(spec=specs() | large_specs())
def test_any_problem_is_within_the_limits_of_a_launch(arch: str, spec: Conv3DSpec) -> None:
    """All loops are bound, and `lower` refuses what the GPU would."""
    (plan,) = gradient_plans([spec], f"cuda:{arch}")
    target = resolve(f"cuda:{arch}", 1)
    assert lower(scheduling.scheduled_module(plan, target), target).functions["main"].launches


@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize("data_format", FORMATS)
def test_default_kernels_do_not_spill(data_format: str) -> None:
    """Neither for whole tiles, of long sums too, nor for small ones."""
    wide = Conv3DSpec(2, (32, 32, 32), 64, 128, (3, 3, 3), pads=(Pads(1, 1),) * 3, data_format=data_format)
    target = resolve("cuda:sm_90", 1)
    odd = [replace(ODD, data_format=data_format, groups=groups) for groups in (1, 4)]
    for plan in gradient_plans([wide, *odd], "cuda:sm_90"):
        source = lower(scheduling.scheduled_module(plan, target), target).source
        for name, resources in toolkit.measure(source, "sm_90").items():
            assert resources.spills == resources.stack == 0, (name, plan.describe(), resources)
