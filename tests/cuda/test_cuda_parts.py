"""Matrix products on GPUs whose reduction is cut into parts, which a second kernel adds in their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cuda_checks import assert_right, compute, default_plans
from problems import data
from tvm_conv3d.compute.cuda.implicit_gemm import extents_of
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import planner, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

TARGET = "cuda:sm_80"

SPEC = Conv3DSpec(1, (4, 5, 6), 32, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("relu",))

#: The deepest layer of an nnU-Net: few cells, and sums of 8640 products.
DEEP = Conv3DSpec(1, (4, 4, 4), 320, 320, (3, 3, 3), pads=(Pads(1, 1),) * 3)


def in_parts(spec: Conv3DSpec, parts: int) -> Plan:
    plan = default_plan(spec, resolve(TARGET, 1), exact=True)
    return replace(plan, variant=replace(plan.variant, parts=parts))


CASES = [
    (SPEC, 3),
    (SPEC, 54),
    (replace(SPEC, data_format=CHANNELS_FIRST, batch=2), 9),
    (replace(SPEC, filters=21, bias=False), 2),
    (replace(SPEC, dtype="float64"), 4),
    (replace(SPEC, dtype="float16"), 9),
    (replace(SPEC, dtype="bfloat16", data_format=CHANNELS_FIRST, batch=2, post_ops=("gelu",)), 3),
    (replace(SPEC, channels=3, filters=40), 3),
    (replace(SPEC, dtype="float16", channels=70, filters=70), 12),
    (replace(SPEC, dtype="float16", channels=29, kernel=(1, 5, 2), pads=(Pads(0, 0), Pads(2, 2), Pads(1, 0))), 2),
    (replace(SPEC, channels=64, filters=64, groups=2, strides=(1, 2, 2)), 27),
]


def test_parts_are_right(machine: str) -> None:
    plans = [in_parts(*case) for case in CASES]
    assert {plan.algorithm for plan in plans} == {"gemm", "tensor_gemm"}
    assert_right(plans, machine=machine)


def test_order_of_threads_does_not_matter() -> None:
    """Neither for what is right nor for any bit of it: parts are added in their order."""
    plan, given = in_parts(SPEC, 9), data(SPEC)
    results = [compute([plan], [given], TARGET, order)[0] for order in ("forward", "reverse", ("shuffled", 1))]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_taken_where_tiles_are_few_and_sums_are_long(dtype: str) -> None:
    for arch, traits in ARCHITECTURES.items():
        plan = default_plan(replace(DEEP, dtype=dtype), resolve(f"cuda:{arch}", 1), exact=True)
        assert plan.variant.parts > 1, arch
        e = extents_of(canonicalize(plan.spec), plan.variant)
        assert e.cell_blocks * e.filter_blocks < traits.multiprocessors


def test_not_taken_where_tiles_are_many_or_sums_are_short() -> None:
    for spec in (replace(DEEP, size=(16, 56, 56), channels=64, filters=64), replace(DEEP, channels=8, filters=24)):
        plan = default_plan(spec, resolve(TARGET, 1), exact=True)
        assert plan.variant.parts == 1


def test_default_plans_in_parts_are_right(machine: str) -> None:
    small = replace(DEEP, size=(3, 3, 3), channels=160, filters=48)
    plans = [
        default_plan(replace(small, dtype=dtype), resolve(TARGET, 1), exact=True) for dtype in ("float32", "float16")
    ]
    assert all(plan.variant.parts > 1 for plan in plans)
    assert_right(plans, machine=machine)


def test_memory_of_parts_is_counted_and_limited() -> None:
    target = resolve(TARGET, 1)
    spec = replace(DEEP, dtype="float16")
    (plan,) = default_plans([spec])
    needed = planner.bytes_per_thread(plan, target)
    assert (
        needed
        == sum(lower(scheduling.scheduled_module(plan, target), target).functions["main"].workspaces.values())
        > 0
    )
    less = make_plan(spec, target, workspace_limit=needed - 1)
    assert planner.bytes_per_thread(less, target) < needed


def test_unequal_parts_are_refused() -> None:
    (plan,) = default_plans([replace(SPEC, dtype="float16")])
    with pytest.raises(ValueError, match="has no 5 equal parts"):
        algorithms("cuda")["tensor_gemm"].declare(plan.spec, replace(plan.variant, parts=5))
