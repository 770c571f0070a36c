"""Problems of 2**31 elements and more: their indices have 64 bits, whichever tensor is that large.

Nothing is run here, as it would take more memory than test machines have.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tvm_conv3d import build, workspace
from tvm_conv3d.compute.collapse import collapse
from tvm_conv3d.plan import default_plan
from tvm_conv3d.schedules.llvm.tile_rule import task_box
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads
from tvm_conv3d.targets import cpu_traits, host_target

PADS = (Pads(1, 1),) * 3
CUBE = (3, 3, 3)
LARGE = {
    "input": Conv3DSpec(1, (1024, 512, 512), 8, 2, CUBE, pads=PADS, dtype="float16"),
    "pointwise": Conv3DSpec(2, (2048, 1024, 1024), 1, 1, (1, 1, 1)),
    "output": Conv3DSpec(1, (128, 256, 256), 1, 512, CUBE, pads=PADS),
    "winograd": Conv3DSpec(1, (512, 256, 512), 64, 64, CUBE, pads=PADS),
    "grouped": Conv3DSpec(1, (512, 256, 512), 64, 64, CUBE, pads=PADS, groups=64),
    "weights": Conv3DSpec(1, (4, 4, 4), 16384, 8192, CUBE, pads=PADS),
    "batch": Conv3DSpec(1 << 22, (8, 8, 8), 1, 1, CUBE, pads=PADS),
}


def index_types(spec: Conv3DSpec, exact: bool) -> set[str]:
    """Types of the loop variables of the default plan's schedule, those of few iterations left out."""
    import tvm_ffi
    from tvm import tirx

    plan = default_plan(spec, host_target(2), exact)
    module = build.scheduled_module(plan, host_target(2))
    found = set()

    def on_loop(loop: tirx.For) -> None:
        if int(loop.extent) > 2:
            found.add(str(loop.loop_var.ty))

    tvm_ffi.structural_walk(module["main"].body, (tirx.For, on_loop))
    return found


@pytest.mark.parametrize("data_format", ["channels_last", CHANNELS_FIRST])
@pytest.mark.parametrize("spec", LARGE.values(), ids=LARGE.keys())
def test_indices_have_64_bits(spec: Conv3DSpec, data_format: str) -> None:
    spec = replace(spec, data_format=data_format)
    assert index_types(spec, exact=True) == {"int64"}
    if default_plan(spec, host_target(2)).algorithm == "winograd":
        assert index_types(spec, exact=False) == {"int64"}


def test_small_problems_keep_32_bits() -> None:
    small = Conv3DSpec(1, (8, 14, 14), 64, 64, CUBE, pads=PADS)
    assert index_types(small, exact=True) == index_types(small, exact=False) == {"int32"}


@pytest.mark.parametrize("name", ["input", "winograd", "grouped"])
def test_large_problems_compile(name: str) -> None:
    plan = default_plan(LARGE[name], host_target(2))
    assert plan.algorithm == {"input": "direct"}.get(name, name)
    artifact = build.compile_plan(plan, host_target(2))
    assert artifact.object_code
    assert workspace.Workspace(*artifact.workspace).per_thread(2) < workspace.DEFAULT_LIMIT


def test_an_intermediate_alone_makes_a_problem_large() -> None:
    """Winograd's products are three times as many as the outputs."""
    spec = Conv3DSpec(1, (128, 256, 256), 32, 32, CUBE, pads=PADS)
    assert math.prod(spec.input_shape) == math.prod(spec.output_shape) == 1 << 28
    assert default_plan(spec, host_target(2)).algorithm == "winograd"
    assert index_types(spec, exact=False) == {"int64"}
    assert index_types(spec, exact=True) == {"int32"}


def test_a_long_axis_is_cut_without_delay() -> None:
    """Trying every number up to the extent took ten seconds here."""
    spec = collapse(LARGE["pointwise"])
    assert spec.size[2] == 1 << 32
    box = task_box(spec, cpu_traits(host_target(2)), (1, 8), 4)
    assert (1 << 29) % box[2] == 0
