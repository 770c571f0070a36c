"""Outputs declared as whole tiles, brought into the user's layout after scheduling.

A schedule places stages well only where every tile is whole, and where what a tile reads is indexed by the loops over
that tile. So a declaration may have its output cut into tiles, the last of which overhang. Once scheduled, the store goes
to the user's layout, under the condition that its element exists there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import PrimFunc

#: Attribute of a function whose output is declared in tiles.
_TILING = "tvm_conv3d.tiling"

#: Name of the block that stores the output, and of the parameter it stores to.
STORE = "out"


@dataclass(frozen=True)
class Tiling:
    """How the axes of a declared output make those of the real one.

    Attributes:
        shape: of the real output.
        axes: for each of its axes the declared ones that make it, with their factors.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[tuple[int, int], ...], ...]


def mark(function: PrimFunc, tiling: Tiling) -> PrimFunc:
    """Notes the tiling for :func:`cut_output`."""
    return function.with_attr(_TILING, json.dumps(asdict(tiling)))


def cut_output(module: IRModule) -> IRModule:
    """The scheduled `main` with its output in the real layout."""
    function = module["main"]
    tiling = json.loads(str(function.attrs[_TILING]))
    function = _reshaped(function.without_attr(_TILING), tiling["shape"])

    def rewritten(realize: SBlockRealize) -> SBlockRealize:
        block = realize.block
        if block.name_hint != STORE:
            return realize
        store = block.body
        real = [_sum(store.indices, axis) for axis in tiling["axes"]]
        moved = SBlock(
            block.iter_vars,
            block.reads,
            [tirx.BufferRegion(store.buffer, [ir.Range.from_min_extent(index, 1) for index in real])],
            block.name_hint,
            tirx.BufferStore(store.buffer, store.value, real),
        )
        values = list(zip(block.iter_vars, realize.iter_values, strict=True))
        extents = [int(axis.dom.extent) for axis in block.iter_vars]
        exists = [
            _known(index, values) < extent
            for index, axis, extent in zip(real, tiling["axes"], tiling["shape"], strict=True)
            if sum(factor * (extents[number] - 1) for number, factor in axis) >= extent
        ]
        return SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *exists), moved)

    body = tvm_ffi.structural_map(function.body, (SBlockRealize, rewritten))
    return IRModule({"main": function.with_body(body)})


def _sum(indices: Sequence[Any], axis: Sequence[Sequence[int]]) -> Any:
    total = None
    for number, factor in axis:
        term = indices[number] if factor == 1 else indices[number] * factor
        total = term if total is None else total + term
    return total


def _known(index: Any, values: Sequence[tuple[Any, Any]]) -> Any:
    """An index of a block's body, as known outside of it."""

    def outside(var: ir.Var) -> Any:
        return next((value for axis, value in values if axis.var.same_as(var)), var)

    return tvm_ffi.structural_map(index, (ir.Var, outside))


def _reshaped(function: PrimFunc, shape: Sequence[int]) -> PrimFunc:
    """`function` with another shape of its output: there is no other way than its serialized graph."""
    graph = json.loads(ir.save_json(function))
    nodes = graph["nodes"]
    root = nodes[graph["root_index"]]["data"]
    names = [str(parameter.name) for parameter in function.params]
    parameter = nodes[nodes[root["params"]]["data"][names.index(STORE)]]["data"]
    buffer_type = nodes[parameter["ty"]]["data"]
    example = nodes[nodes[buffer_type["shape"]]["data"][0]]["data"]
    number = nodes[example["value"]]

    def add(kind: str, data: Any) -> int:
        nodes.append({"type": kind, "data": data})
        return len(nodes) - 1

    extents = [add("ir.IntImm", {**example, "value": add(number["type"], extent)}) for extent in shape]
    buffer_type["shape"] = add("ffi.Array", extents)
    return ir.load_json(json.dumps(graph))
