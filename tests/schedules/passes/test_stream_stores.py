"""Results that are stored past the caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from problems import data, execute, run_plan
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import output_pool
from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

LARGE = Conv3DSpec(1, (6, 40, 40), 8, 32, (1, 1, 1), pads=NO_PADS, post_ops=("relu",))
SPECS = {
    "direct": LARGE,
    "winograd": replace(LARGE, kernel=(3, 3, 3), pads=(Pads(1, 1),) * 3),  # type: ignore[arg-type]
    "grouped": replace(LARGE, channels=32, groups=32, kernel=(3, 3, 3), pads=(Pads(1, 1),) * 3),  # type: ignore[arg-type]
    "depthwise": replace(
        LARGE, channels=36, filters=36, groups=36, kernel=(1, 3, 3), pads=(Pads(0, 0), *[Pads(1, 1)] * 2)
    ),  # type: ignore[arg-type]
    "planes": replace(LARGE, size=(6, 40, 48), data_format=CHANNELS_FIRST),
}


def streaming_plan(name: str, spec: Conv3DSpec) -> Plan:
    algorithm = algorithms("llvm")[name]
    variants = algorithm.variants(spec, cpu_traits(host_target(2)))
    return Plan(spec, name, next(variant for variant in variants if variant.stream), {})


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("offset", [0, 4])
def test_the_numbers_are_right_at_any_address(name: str, offset: int) -> None:
    """Aligned results are stored past the caches, others in the ordinary way."""
    plan = streaming_plan(name, SPECS[name])
    x, kernel, bias = data(plan.spec)
    room = output_pool.empty((int(np.prod(plan.spec.output_shape)) + 16,), x.dtype)
    assert room.ctypes.data % 64 == 0
    out = room[offset : offset + int(np.prod(plan.spec.output_shape))].reshape(plan.spec.output_shape)
    _, trusted = execute(plan, x, kernel, bias, out)
    assert trusted
    expected = np.maximum(oracle.convolve(plan.spec, x, kernel, bias), 0)
    assert oracle.relative_error(out, expected) < 1e-5


def test_shuffled_loads_and_streamed_stores_go_together() -> None:
    spec = replace(LARGE, channels=32, groups=8, kernel=(3, 3, 3), pads=(Pads(1, 1),) * 3)  # type: ignore[arg-type]
    plan = streaming_plan("grouped", spec)
    assert plan.variant.shuffled
    assert run_plan(plan) < 1e-6


def test_vectors_of_several_groups_are_not_streamed() -> None:
    """Groups of 20 filters, each in 3 vectors of 8 of its own: some that are stored would come from both."""
    target = resolve({"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}, 2)
    spec = replace(SPECS["winograd"], filters=40, groups=2)
    found = algorithms("llvm")["winograd"].variants(spec, cpu_traits(target))
    assert not any(variant.stream for variant in found)
    large = default_plan(replace(spec, size=(64, 64, 64)), target)
    assert (large.algorithm, large.variant.stream) == ("winograd", False)
    build.compile_plan(large, target)
    with pytest.raises(ValueError, match="several groups"):
        scheduling.scheduled_module(replace(large, variant=replace(large.variant, stream=True)), target)


@pytest.mark.parametrize(("cpu", "instruction"), [("znver4", r"vmovntps\t%zmm"), ("haswell", r"vmovntps\t%ymm")])
def test_the_instruction_is_emitted(cpu: str, instruction: str) -> None:
    import re

    import tvm

    target = resolve({"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu"}, 2)
    algorithm = algorithms("llvm")["direct"]
    variant = next(v for v in algorithm.variants(LARGE, cpu_traits(target)) if v.stream)
    plan = Plan(LARGE, "direct", variant, {})
    module = scheduling.scheduled_module(plan, target)
    text = str(tvm.compile(scheduling.lowered_module(module, target), target=target.as_tvm()).mod.inspect_source("asm"))
    assert re.search(instruction, text)
    assert not re.search("vmovnt", str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm")))


def test_by_default_only_what_outgrows_the_caches() -> None:
    target = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
    half = cpu_traits(target).l3 // 2
    for cells, expected in ((half // (64 * 4 * 32**2) - 1, False), (half // (64 * 4 * 32**2) + 1, True)):
        spec = replace(SPECS["winograd"], size=(cells, 32, 32), channels=64, filters=64)
        plan = default_plan(spec, target)
        assert (plan.algorithm, plan.variant.stream) == ("winograd", expected)


def test_only_large_outputs_of_whole_vectors() -> None:
    """Others of whole cells go by way of strips."""
    traits = cpu_traits(host_target(2))
    odd = algorithms("llvm")["direct"].variants(replace(LARGE, filters=30), traits)
    assert {variant.order for variant in odd if variant.stream} == {"strips"}
    for spec in (
        replace(LARGE, size=(2, 4, 4)),
        replace(LARGE, data_format=CHANNELS_FIRST),
        replace(LARGE, dtype="float16"),
    ):
        variants = algorithms("llvm")["direct"].variants(spec, traits)
        assert not any(variant.stream for variant in variants)
