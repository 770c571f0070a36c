"""Vectors loaded with their elements in another order, as loads of whole vectors and a shuffle in registers.

TVM loads a vector at any other than consecutive places element by element. Where these places are all of one vector, in
another order or some of them several times, that vector is loaded and shuffled; or several vectors, where it is known
at which multiples of their length these lie. TVM has an expression for a shuffle, but nothing that makes one.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, sym, tirx
from tvm.s_tir import Schedule
from tvm.tirx import transform

from tvm_conv3d.schedules.llvm.passes import marks

#: Mark of a function.
_PERMUTES = "tvm_conv3d.loads_permuted"

_UNROLL = transform.UnrollLoop()

#: How indices of vectors are computed.
_OPERATIONS = {
    tirx.Add: operator.add,
    tirx.Sub: operator.sub,
    tirx.Mul: operator.mul,
    tirx.FloorDiv: operator.floordiv,
    tirx.FloorMod: operator.mod,
    tirx.BitwiseXor: operator.xor,
}


def mark(sch: Schedule) -> None:
    """Marks a function that loads vectors so."""
    marks.on_output(sch, _PERMUTES)


@marks.function_pass("shuffle_permuted_loads", _PERMUTES)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function lowered to vectors in which permuted loads are shuffles."""
    # what a loop permutes by is a constant once that loop is unrolled
    function = _UNROLL(IRModule({"main": function}))["main"]
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
        order = [int(offset) for offset in offsets]
        first = analyzer.simplify(places[0])
        least, span = min(order), max(order) - min(order) + 1
        if set(order) == set(range(least, least + span)):
            vector = _vector(load, analyzer.simplify(first + least), span)
            # a shuffle may not have more elements than what it is made of
            return _shuffle([vector] * -(-lanes // span), [place - least for place in order])
        width = _whole(load, lanes)
        known = analyzer.modular_set(first)
        if int(known.coeff) % width:
            return load
        # from the start of the first element's vector
        within = [int(known.base) % width + place for place in order]
        starts = sorted({place // width * width for place in within})
        vectors = [_vector(load, analyzer.simplify(first + (start - within[0])), width) for start in starts]
        return _shuffle(vectors, [starts.index(p // width * width) * width + p % width for p in within])

    return function.with_body(tvm_ffi.structural_map(function.body, (ir.TensorLoad, shuffled)))


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


def _whole(load: ir.TensorLoad, lanes: int) -> int:
    """The least power of two that holds `lanes`, as far as vectors of it fill the buffer."""
    size = math.prod(int(extent) for extent in load.source.shape)
    width = 1 << (lanes - 1).bit_length()
    while size % width:
        width //= 2
    return width


def _shuffle(vectors: list[Any], order: list[int]) -> Any:
    return tirx.Shuffle(vectors, [tirx.const(place, "int32") for place in order])


def _vector(load: ir.TensorLoad, start: Any, lanes: int) -> Any:
    return tirx.BufferLoad(load.source, [tirx.Ramp(start, tirx.const(1, start.ty.dtype), lanes)])
