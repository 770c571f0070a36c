"""Groups of few channels whose vectors are loaded once and shuffled in registers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from problems import BOUNDS, run_plan
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve


def grouped(channels: int, groups: int, kernel: int = 3, **more: object) -> Conv3DSpec:
    size, k = (4, 7, 11), (kernel,) * 3
    pads = same_padding(size, k, (1, 1, 1), (1, 1, 1))
    return replace(Conv3DSpec(1, size, channels, channels, k, pads=pads, groups=groups), **more)  # type: ignore[arg-type]


def _grouped_plan(spec: Conv3DSpec, target: Any) -> Plan:
    """The algorithm's default, whether another is cheaper or not; the direct convolution's where it does not apply."""
    for name in ("grouped", "direct"):
        found = algorithms("llvm")[name].default(spec, cpu_traits(target))
        if found is not None:
            return Plan(spec, name, *found)
    raise AssertionError(spec.key())


LAYERS = [
    grouped(24, 12),
    grouped(20, 5),
    grouped(40, 5),
    grouped(40, 5, kernel=5),
    grouped(32, 8, data_format=CHANNELS_FIRST),
    grouped(32, 8, dtype="float64"),
    grouped(32, 8, dtype="float16"),
    grouped(32, 8, dtype="bfloat16", strides=(1, 2, 2)),
]


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.key())
def test_the_numbers_are_right(spec: Conv3DSpec) -> None:
    plan = _grouped_plan(spec, host_target(2))
    if plan.algorithm == "grouped":  # on narrow vectors a group can fill one
        assert plan.variant.shuffled
    assert run_plan(plan) < BOUNDS[spec.dtype]


@pytest.mark.parametrize("spec", [grouped(24, 12), grouped(32, 16, strides=(1, 2, 2))], ids=lambda spec: spec.key())
def test_a_recorded_plan_without_shuffles_is_right(spec: Conv3DSpec) -> None:
    plan = _grouped_plan(spec, host_target(2))
    assert run_plan(replace(plan, variant=replace(plan.variant, shuffled=False))) < 2e-6


def test_other_groups_are_not_shuffled() -> None:
    for spec in (grouped(33, 11), grouped(14, 7, filters=28), grouped(32, 32)):
        assert not _grouped_plan(spec, host_target(2)).variant.shuffled


def assembly(module: Any, target: Any) -> str:
    import tvm

    return str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm"))


@pytest.mark.parametrize(
    ("target", "instruction", "one_by_one"),
    [
        ({"mcpu": "znver4"}, r"vshufps\t.*%zmm", r"vinsertps"),
        ({"mcpu": "haswell"}, r"v(shufps|permilps)\t.*%ymm", r"vinsertps"),
        ({"mcpu": "x86-64"}, r"shufps\t.*%xmm", r"unpcklps"),
        ({"mcpu": "neoverse-n1", "mtriple": "aarch64-linux-gnu"}, r"rev64\tv", r"ld1\t\{ v\d+\.s \}\["),
    ],
)
def test_vectors_are_loaded_whole(target: dict[str, str], instruction: str, one_by_one: str) -> None:
    triple = {"mtriple": "x86_64-linux-gnu"} if "mtriple" not in target else {}
    resolved = resolve({"kind": "llvm", **target, **triple}, 2)
    plan: Plan = _grouped_plan(grouped(64, 32), resolved)
    module = scheduling.scheduled_module(plan, resolved)
    text = assembly(scheduling.lowered_module(module, resolved), resolved)
    assert re.search(instruction, text)
    assert not re.search(one_by_one, text)
    # what is rewritten is needed: TVM itself loads such vectors one element after the other
    assert re.search(one_by_one, assembly(module, resolved))
