"""Random points of every design space compile and compute the right numbers, on odd shapes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from problems import BOUNDS, run_plan
from tvm_conv3d.engine.algorithm import Algorithm
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, WEIGHT_GRADIENT, Conv3DSpec, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target

#: Points that are drawn from the space of each problem: always, and with the deep tests.
SAMPLE, POINTS = 1, 50


def same(size: tuple[int, int, int], channels: int, filters: int, kernel: int, **more: object) -> Conv3DSpec:
    k = (kernel,) * 3
    pads = same_padding(size, k, more.get("strides", (1, 1, 1)), more.get("dilation", (1, 1, 1)))  # type: ignore[arg-type]
    return Conv3DSpec(1, size, channels, filters, k, pads=pads, **more)  # type: ignore[arg-type]


SHAPES = {
    "direct": [
        same((5, 7, 11), 13, 19, 3),
        replace(same((1, 17, 3), 3, 70, 3, data_format=CHANNELS_FIRST), batch=2),
        same((6, 13, 13), 32, 48, 1),
        replace(same((7, 9, 8), 8, 5, 2, strides=(2, 1, 3)), pads=NO_PADS),
        same((4, 9, 9), 40, 40, 3, groups=2, dilation=(1, 2, 1), post_ops=("relu",)),
        same((4, 7, 11), 20, 16, 3, groups=4, post_ops=("relu",)),
        replace(same((3, 7, 6), 40, 24, 3, groups=8, strides=(1, 2, 1), data_format=CHANNELS_FIRST), batch=2),
    ],
    "grouped": [
        same((9, 6, 10), 20, 20, 3, groups=20),
        same((4, 9, 9), 24, 12, 3, groups=6, strides=(1, 2, 2)),
        replace(same((3, 5, 17), 15, 45, 2, groups=15), batch=2),
        same((5, 7, 7), 16, 16, 3, groups=4, data_format=CHANNELS_FIRST),
        same((5, 6, 13), 33, 33, 5, groups=33, post_ops=("relu",)),
    ],
    "planes": [
        same((5, 7, 19), 13, 19, 3, data_format=CHANNELS_FIRST),
        replace(same((4, 9, 40), 20, 20, 3, groups=20, data_format=CHANNELS_FIRST, post_ops=("relu",)), batch=2),
        same((4, 9, 33), 24, 12, 3, groups=6, strides=(1, 2, 2), dilation=(2, 1, 1), data_format=CHANNELS_FIRST),
        same((3, 4, 16), 32, 48, 1, data_format=CHANNELS_FIRST),
        same((4, 9, 21), 20, 3, 3, post_ops=("relu",)),
        replace(same((7, 9, 11), 8, 5, 2, strides=(2, 1, 3), data_format=CHANNELS_FIRST), pads=NO_PADS),
    ],
    "depthwise": [
        same((9, 6, 10), 20, 20, 3, groups=20),
        same((5, 9, 11), 13, 13, 3, groups=13, strides=(1, 2, 2)),
        replace(same((3, 5, 17), 54, 54, 3, groups=54), batch=2),
        replace(same((7, 9, 8), 5, 5, 2, groups=5, dilation=(2, 1, 3)), pads=NO_PADS),
        same((5, 6, 13), 33, 33, 5, groups=33, post_ops=("relu",)),
    ],
    "winograd": [
        same((5, 7, 11), 13, 19, 3),
        replace(same((6, 9, 8), 16, 16, 3, data_format=CHANNELS_FIRST), batch=2),
        same((7, 9, 8), 8, 24, 3, strides=(2, 1, 2)),
        same((6, 8, 9), 16, 32, 3, dilation=(2, 2, 1), post_ops=("relu",)),
        same((2, 11, 5), 20, 17, 5),
        same((5, 7, 9), 24, 20, 3, groups=4, post_ops=("relu",)),
        replace(same((4, 9, 8), 36, 60, 3, groups=3, strides=(2, 1, 2), data_format=CHANNELS_FIRST), batch=2),
    ],
    "winograd_rows": [
        same((9, 6, 10), 20, 20, 3, groups=20),
        same((4, 9, 9), 24, 12, 5, groups=6, strides=(1, 2, 1)),
        replace(same((3, 5, 17), 15, 45, 2, groups=15), batch=2),
        same((5, 7, 7), 16, 16, 3, groups=4, data_format=CHANNELS_FIRST),
        same((5, 6, 13), 33, 33, 7, groups=33, post_ops=("relu",)),
    ],
    "weight_gradient": [
        replace(same((5, 7, 11), 13, 19, 3), direction=WEIGHT_GRADIENT),
        replace(same((4, 18, 20), 3, 40, 5, strides=(1, 2, 2)), direction=WEIGHT_GRADIENT, batch=2),
        replace(same((4, 9, 10), 32, 64, 3, dilation=(1, 2, 1)), direction=WEIGHT_GRADIENT, bias=False),
        replace(same((6, 12, 8), 40, 24, 1, data_format=CHANNELS_FIRST), direction=WEIGHT_GRADIENT),
        replace(same((5, 7, 8), 24, 12, 3, groups=6), direction=WEIGHT_GRADIENT),
    ],
}


def random_points(algorithm: Algorithm, spec: Conv3DSpec, count: int) -> list[Plan]:
    """Different points, of all variants alike; all that there are, where there are fewer than wanted."""
    from tvm.s_tir import Schedule

    generator = random.Random(spec.key())
    variants = algorithm.variants(spec, cpu_traits(host_target(2)))
    found: dict[str, Plan] = {}
    for seed in range(1, 4 * count):
        variant = generator.choice(variants)
        schedule = Schedule(algorithm.declare(spec, variant).module(), seed=seed)
        decisions = Decisions(schedule, None)
        algorithm.apply(schedule, spec, variant, decisions)
        plan = Plan(spec, algorithm.name, variant, decisions.taken())
        found[plan.describe()] = plan
        if len(found) == count:
            break
    return list(found.values())


CASES = [(name, spec) for name, shapes in SHAPES.items() for spec in shapes]


@pytest.mark.parametrize("count", [SAMPLE, pytest.param(POINTS, marks=pytest.mark.deep)])
@pytest.mark.parametrize(("name", "spec"), CASES, ids=[f"{name} {spec.key()}" for name, spec in CASES])
def test_random_points_are_right(name: str, spec: Conv3DSpec, count: int) -> None:
    """MetaSchedule may draw any of these."""
    algorithm = algorithms("llvm")[name]
    points = random_points(algorithm, spec, count)
    assert len(points) >= min(count, 8)
    for plan in points:
        bound = BOUNDS[spec.dtype] if algorithm.exact else 1.5 * plan.error_bound
        assert run_plan(plan) < bound, plan.describe()


def test_every_algorithm_has_its_shapes() -> None:
    assert set(SHAPES) == set(algorithms("llvm"))
