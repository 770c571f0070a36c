"""Problems of 2**31 elements and more: their indices have 64 bits, whichever tensor is that large.

No large problem is run here, as it would take more memory than test machines have.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from tvm import ir, tirx

from problems import data, execute
from sampling import sampled
from tvm_conv3d.compute.shared import declaration
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import build, planner, scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import loader
from tvm_conv3d.schedules.llvm.costs.tile_rule import task_box
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, WEIGHT_GRADIENT, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target

FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)
PADS = (Pads(1, 1),) * 3
CUBE = (3, 3, 3)
LARGE = {
    "input": Conv3DSpec(1, (1024, 512, 512), 8, 2, CUBE, pads=PADS, dtype="float16"),
    "pointwise": Conv3DSpec(2, (2048, 1024, 1024), 1, 1, (1, 1, 1)),
    "output": Conv3DSpec(1, (128, 256, 256), 1, 512, CUBE, pads=PADS),
    "winograd": Conv3DSpec(1, (512, 256, 512), 64, 64, CUBE, pads=PADS),
    "grouped": Conv3DSpec(1, (512, 256, 512), 64, 64, CUBE, pads=PADS, groups=64),
    "shared": Conv3DSpec(1, (512, 512, 512), 64, 64, CUBE, pads=PADS, groups=8),
    "odd": Conv3DSpec(2, (2048, 1024, 1024), 4, 13, (1, 1, 1), post_ops=("elu",)),
    "few channels": Conv3DSpec(1, (512, 512, 200), 50, 40, (1, 1, 1)),
    "half filled": Conv3DSpec(1, (2048, 2048, 17), 36, 36, CUBE, pads=PADS, groups=36),
    "half filled rows": Conv3DSpec(1, (1024, 512, 150), 36, 36, (5, 5, 5), pads=((2, 2),) * 3, groups=36),
    "weights": Conv3DSpec(1, (4, 4, 4), 16384, 8192, CUBE, pads=PADS),
    "batch": Conv3DSpec(1 << 22, (8, 8, 8), 1, 1, CUBE, pads=PADS),
    "stem": Conv3DSpec(64, (64, 128, 128), 3, 64, CUBE, pads=PADS),
    "strided stem": Conv3DSpec(1024, (16, 112, 112), 3, 64, (5, 7, 7), strides=(1, 2, 2), pads=((3, 3),) * 3),
}


def index_types(spec: Conv3DSpec, exact: bool) -> set[str]:
    """Types of the loop variables of the default plan's schedule, those of few iterations left out."""
    import tvm_ffi

    plan = default_plan(spec, host_target(2), exact)
    module = scheduling.scheduled_module(plan, host_target(2))
    found = set()

    def on_loop(loop: tirx.For) -> None:
        if int(loop.extent) > 2:
            found.add(str(loop.loop_var.ty))

    tvm_ffi.structural_walk(module["main"].body, (tirx.For, on_loop))
    return found


@pytest.mark.parametrize(("name", "data_format"), sampled(itertools.product(LARGE, FORMATS), 3))
def test_indices_have_64_bits(name: str, data_format: str) -> None:
    spec = replace(LARGE[name], data_format=data_format)
    assert index_types(spec, exact=True) == {"int64"}
    if default_plan(spec, host_target(2)).algorithm == "winograd":
        assert index_types(spec, exact=False) == {"int64"}


def test_small_problems_keep_32_bits() -> None:
    small = Conv3DSpec(1, (8, 14, 14), 64, 64, CUBE, pads=PADS)
    assert index_types(small, exact=True) == index_types(small, exact=False) == {"int32"}


SMALL = {
    "dense": Conv3DSpec(1, (5, 9, 11), 8, 32, CUBE, pads=PADS, post_ops=("relu",)),
    "odd": Conv3DSpec(2, (5, 9, 11), 8, 30, CUBE, pads=PADS, post_ops=("elu",)),
    "pointwise": Conv3DSpec(1, (5, 9, 11), 4, 13, (1, 1, 1)),
    "strided": Conv3DSpec(1, (6, 8, 12), 6, 32, CUBE, strides=(1, 2, 2), pads=((0, 1),) * 3),
    "groups": Conv3DSpec(1, (5, 9, 11), 32, 32, CUBE, pads=PADS, groups=8),
    "depthwise": Conv3DSpec(1, (5, 9, 11), 38, 38, CUBE, pads=PADS, groups=38),
    "double": Conv3DSpec(1, (5, 9, 11), 6, 17, CUBE, pads=PADS, dtype="float64"),
    "folded": Conv3DSpec(1, (5, 9, 11), 3, 32, CUBE, pads=PADS),
    "head": Conv3DSpec(1, (5, 9, 32), 5, 2, CUBE, pads=PADS),
}


@pytest.mark.parametrize(
    ("name", "data_format", "narrowed"), sampled(itertools.product(SMALL, FORMATS, (False, True)), 5)
)
def test_indices_of_64_bits_give_the_same_numbers(
    name: str, data_format: str, narrowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All defaults, in every way of storing. TVM narrows indices of what is small, as parts of large problems are."""
    spec = replace(SMALL[name], data_format=data_format)
    traits = cpu_traits(host_target(2))
    found = [(name, algorithm.default(spec, traits)) for name, algorithm in algorithms("llvm").items()]
    plans = [Plan(spec, name, *plan) for name, plan in found if plan]
    plans += [
        replace(plan, variant=replace(plan.variant, stream=True)) for plan in plans if hasattr(plan.variant, "stream")
    ]
    x, kernel, bias = data(spec)
    result = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias))
    monkeypatch.setattr(declaration, "WIDE", 1)
    if not narrowed:
        monkeypatch.setattr(tirx.transform, "NarrowDataType", lambda bits: ir.transform.Sequential([]))
    for plan in plans:
        out, trusted = execute(plan, x, kernel, bias)
        assert trusted
        assert oracle.relative_error(out, result) < 1e-5, plan.describe()


COMPILED = {
    "input": "planes",
    "pointwise": "planes",
    "winograd": "winograd",
    "grouped": "grouped",
    "shared": "winograd",
    "odd": "direct",
    "batch": "planes",
    "few channels": "direct",
    "half filled": "depthwise",
    "half filled rows": "winograd_rows",
    "stem": "winograd",
    "strided stem": "winograd",
}


def test_large_gradients_of_weights_compile() -> None:
    """Of one channel, whose sums are cut the most: the sum over the parts is one expression."""
    spec = Conv3DSpec(1, (4096, 4096, 2048), 1, 1, CUBE, pads=PADS, direction=WEIGHT_GRADIENT)
    plan = default_plan(spec, host_target(2))
    assert build.compile_plan(plan, host_target(2)).object_code


@pytest.mark.parametrize(("name", "data_format"), sampled(itertools.product(COMPILED, FORMATS), 5))
def test_large_problems_compile(name: str, data_format: str) -> None:
    """In channels_last by the named algorithm, in channels_first by the default."""
    spec, target = replace(LARGE[name], data_format=data_format), host_target(2)
    plan = default_plan(spec, target)
    if data_format != CHANNELS_FIRST:
        found = algorithms("llvm")[COMPILED[name]].default(spec, cpu_traits(target))
        assert found is not None
        plan = Plan(spec, COMPILED[name], *found)
    artifact = build.compile_plan(plan, host_target(2))
    loader.link(artifact)
    assert artifact.workspace.per_thread(2) < planner.DEFAULT_LIMIT


def test_an_intermediate_alone_makes_a_problem_large() -> None:
    """Winograd's products are three times as many as the outputs."""
    spec = Conv3DSpec(1, (128, 256, 256), 32, 32, CUBE, pads=PADS)
    assert math.prod(spec.input_shape) == math.prod(spec.output_shape) == 1 << 28
    assert default_plan(spec, host_target(2)).algorithm == "winograd"
    assert index_types(spec, exact=False) == {"int64"}
    assert index_types(spec, exact=True) == {"int32"}


def test_a_long_axis_is_cut_without_delay() -> None:
    """Trying every number up to the extent took ten seconds here."""
    spec = canonicalize(LARGE["pointwise"])
    assert spec.size[2] == 1 << 32
    box = task_box(spec, cpu_traits(host_target(2)), (1, 8), 4)
    assert (1 << 29) % box[2] == 0
