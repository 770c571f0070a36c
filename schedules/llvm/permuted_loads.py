"""Vectors loaded with their elements in another order, as one load and a shuffle in registers.

TVM loads a vector at any other than consecutive places element by element. Where these places are all of one vector, in
another order, that vector is loaded and shuffled: TVM has an expression for it, but nothing that makes one.
"""

from __future__ import annotations

import operator
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, sym, tirx
from tvm.tirx import transform

#: How indices of vectors are computed.
_OPERATIONS = {tirx.Add: operator.add, tirx.Mul: operator.mul, tirx.BitwiseXor: operator.xor}


def rewrite(module: IRModule) -> IRModule:
    """A function lowered to vectors in which permuted loads are shuffles."""
    # what a loop permutes by is a number once that loop is unrolled
    function = transform.UnrollLoop()(module)["main"]
    analyzer = sym.Analyzer()

    def shuffled(load: ir.TensorLoad) -> Any:
        index = load.indices[0]
        lanes = getattr(index.ty.dtype, "lanes", 1) if not isinstance(index, tirx.Ramp) else 1
        if lanes == 1:
            return load
        places = [_lane(index, lane) for lane in range(lanes)]
        if any(place is None for place in places):
            return load
        offsets = [analyzer.simplify(place - places[0]) for place in places]
        if not all(isinstance(offset, tirx.IntImm) for offset in offsets):
            return load
        least = min(int(offset) for offset in offsets)
        order = [int(offset) - least for offset in offsets]
        if sorted(order) != list(range(lanes)):
            return load
        base = analyzer.simplify(places[0] + least)
        vector = tirx.BufferLoad(load.source, [tirx.Ramp(base, tirx.const(1, base.ty.dtype), lanes)])
        return tirx.Shuffle([vector], [tirx.const(place, "int32") for place in order])

    body = tvm_ffi.structural_map(function.body, (ir.TensorLoad, shuffled))
    return IRModule({"main": function.with_body(body)})


def _lane(index: Any, lane: int) -> Any:
    """Element `lane` of a vector of indices; None where it is made of what no index of ours is."""
    if isinstance(index, tirx.Ramp):
        return index.base + index.stride * lane
    if isinstance(index, tirx.Broadcast):
        return index.value
    if type(index) not in _OPERATIONS:
        return None
    left, right = _lane(index.a, lane), _lane(index.b, lane)
    return None if left is None or right is None else _OPERATIONS[type(index)](left, right)
