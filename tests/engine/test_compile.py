"""What a compile leaves out or does another way than TVM's own: the machine code stays the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tvm_ffi
from tvm import ir, te
from tvm.tirx import PrimFunc

from tvm_conv3d.compute.shared import parameters
from tvm_conv3d.engine import build
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.schedules.llvm.passes import lower_to_loops
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import host_target

SPEC = Conv3DSpec(1, (8, 14, 14), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("change", [{}, {"data_format": CHANNELS_FIRST}, {"dtype": "bfloat16"}, {"filters": 45}])
def test_buffers_are_made_small_once(change: dict[str, object], exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target = host_target(2)
    plan = default_plan(replace(SPEC, **change), target, exact)  # type: ignore[arg-type]
    once = build.compile_plan(plan, target)
    monkeypatch.setattr(lower_to_loops, "DONE", ())
    assert build.compile_plan(plan, target).object_code == once.object_code


def by_its_text(function: PrimFunc) -> PrimFunc:
    """`function` with parameters of their elements' alignment, which are edited in the serialized graph."""
    graph = json.loads(ir.save_json(function))
    nodes = graph["nodes"]
    root = nodes[graph["root_index"]]["data"]
    for parameter in nodes[root["params"]]["data"]:
        kind = nodes[nodes[parameter]["data"]["ty"]]["data"]
        kind["data_alignment"] = np.dtype(nodes[kind["dtype"]]["data"]["dtype"]).itemsize
    return ir.load_json(json.dumps(graph))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_replaced_parameters_differ_in_what_was_asked_only(dtype: str) -> None:
    plan = default_plan(replace(SPEC, dtype=dtype), host_target(2))
    declaration = named(plan.algorithm).declare(plan.spec, plan.variant)
    function = te.create_prim_func(list(declaration.tensors))
    sizes = {str(p.name): np.dtype(str(p.ty.dtype)).itemsize for p in function.params}
    new = {str(p.name): parameters.like(p, alignment=sizes[str(p.name)]) for p in function.params}
    found = parameters.replaced(function, new)
    assert [p.ty.data_alignment for p in found.params] == list(sizes.values())
    assert tvm_ffi.structural_equal(found, by_its_text(function), map_free_vars=True)
    one = parameters.replaced(function, {"x": new["x"]})
    assert [p.same_as(old) for p, old in zip(one.params, function.params, strict=True)][1:] == [True] * (len(sizes) - 1)
