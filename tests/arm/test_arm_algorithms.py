"""Each algorithm's code for ARM, by itself: packing, convolution, flags, and what they touch of memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from arm_checks import assert_right, compiled, execute, plan_of
from arm_on_cpu import MACHINES, NEON, SVE_256, Machine, missing
from problems import data, data_gradients, kinds_of_layers, specs
from sampling import sampled
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DATA_GRADIENT, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

DTYPES = ("float32", "float64", "float16", "bfloat16")

BASE = Conv3DSpec(1, (5, 6, 9), 12, 20, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))

#: A layer that each algorithm serves; Winograd's sums are of float32.
LAYERS = {
    "winograd": BASE,
    "winograd_rows": replace(BASE, channels=12, filters=12, groups=12, kernel=(3, 5, 5)),
    "planes": replace(BASE, data_format=CHANNELS_FIRST, size=(5, 9, 24), channels=3, filters=7, post_ops=("add",)),
    "depthwise": replace(BASE, channels=17, filters=17, groups=17),
    "grouped": replace(BASE, channels=24, filters=12, groups=12, strides=(1, 2, 2)),
    "direct": replace(BASE, channels=5, filters=19, strides=(2, 1, 1), post_ops=("sigmoid",)),
}

CASES = [
    (name, dtype, machine)
    for name, dtype, machine in itertools.product(LAYERS, DTYPES, MACHINES)
    if not (name.startswith("winograd") and dtype == "float64")
]


def served(name: str, spec: Conv3DSpec, machine: Machine) -> Plan:
    plan = plan_of(name, spec, machine)
    assert plan is not None
    return plan


@pytest.mark.parametrize(("name", "dtype", "machine"), sampled(CASES, 11), ids=str)
def test_every_algorithm(name: str, dtype: str, machine: Machine) -> None:
    plan = served(name, replace(LAYERS[name], dtype=dtype), machine)
    artifact = compiled(plan, machine)
    for reverse in (False, True):
        assert_right(plan, machine, reverse, artifact)


def test_there_is_a_layer_for_every_algorithm() -> None:
    assert LAYERS.keys() == algorithms("llvm").keys()


@pytest.mark.deep
@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_variants(name: str, machine: Machine) -> None:
    """Some of those that compete while tuning: other lanes, tiles and orders than the default's."""
    spec = LAYERS[name]
    found = algorithms("llvm")[name].variants(spec, cpu_traits(machine.target))
    assert found
    for variant in found[:: max(1, len(found) // 8)]:
        assert_right(Plan(spec, name, variant, {}), machine)


@pytest.mark.deep
@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_all_algorithms_on_kinds_of_layers(machine: Machine, data_format: str) -> None:
    found = set()
    for spec in kinds_of_layers(replace(BASE, data_format=data_format)):
        for name in algorithms("llvm"):
            plan = plan_of(name, spec, machine)
            if plan is not None:
                assert_right(plan, machine)
                found.add(name)
    # planes and grouped kernels take depthwise layers in channels_first
    expected = LAYERS.keys() - {"winograd_rows"}
    assert found >= (expected if data_format == CHANNELS_LAST else expected - {"depthwise"})


@pytest.mark.deep
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_any_problem(spec: Conv3DSpec) -> None:
    for machine in (NEON, SVE_256):
        assert_right(make_plan(spec, machine.target, exact=True), machine)


@pytest.mark.deep
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=data_gradients())
def test_any_transposed_problem(spec: Conv3DSpec) -> None:
    for machine in (NEON, SVE_256):
        assert_right(make_plan(spec, machine.target, exact=True), machine)


@pytest.mark.parametrize("machine", sampled(MACHINES, 2), ids=str)
def test_a_transposed_convolution(machine: Machine) -> None:
    spec = Conv3DSpec(
        2, (5, 8, 6), 6, 10, (3, 4, 2), strides=(2, 2, 1), pads=(Pads(1, 1),) * 3, direction=DATA_GRADIENT
    )
    assert_right(make_plan(spec, machine.target), machine)


@pytest.mark.parametrize("machine", sampled(MACHINES, 3), ids=str)
def test_flags_tell_what_must_not_be_trusted(machine: Machine) -> None:
    plan = served("winograd", LAYERS["winograd"], machine)
    artifact = compiled(plan, machine)
    x, kernel, bias = data(plan.spec)
    assert execute(plan, machine, x, kernel, bias, artifact=artifact).trusted
    # with the last one sums over a tile overflow
    for value in (np.nan, np.inf, -np.inf, 1e38):
        spoiled = x.copy()
        spoiled[0, 2, 3, 4:6, 5] = value
        assert not execute(plan, machine, spoiled, 1e3 * kernel, bias, artifact=artifact).trusted, value
