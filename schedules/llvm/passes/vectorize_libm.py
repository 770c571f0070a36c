"""Calls of the C library's functions become vectors: TVM takes a loop that calls the library lane by lane.

A call becomes one of an operator of our own, which TVM vectorizes as any other, and lowers at the end to a call of a
function of :mod:`vector_math` for as many lanes. Only calls on float32 do; those on float64 stay.
"""

from __future__ import annotations

import functools

import tvm_ffi
from tvm import IRModule, ir, tirx

from tvm_conv3d.schedules.llvm.passes import llvm_functions, marks, vector_math
from tvm_conv3d.schedules.llvm.passes.llvm_values import Code

#: Lanes that later passes make vectors of, and those of single elements.
_LANES = (1, 2, 4, 8, 16, 32, 64)

_PREFIX = "tvm_conv3d_"


@marks.module_pass("vectorize_libm")
def rewrite(module: IRModule) -> IRModule:
    """A module in which the functions of :mod:`vector_math` are operators on vectors."""
    return marks.each(module, _rewritten)


def _rewritten(function: tirx.PrimFunc) -> tirx.PrimFunc:
    call_library = ir.Op.get("tirx.call_pure_extern")
    used: set[str] = set()
    lanes = {*_LANES}

    def note_lanes(loop: tirx.For) -> None:
        # rows and groups of any length
        if loop.kind == tirx.ForKind.VECTORIZED:
            lanes.add(int(loop.extent))

    def vectorizable(call: ir.Call) -> ir.Expr:
        name = str(call.args[0].value) if call.op.same_as(call_library) else ""
        if name not in vector_math.FUNCTIONS:
            return call
        used.add(name)
        return tirx.call_intrin("float32", _operator(name), call.args[1])

    body = tvm_ffi.structural_map(function.body, (ir.Call, vectorizable))
    tvm_ffi.structural_walk(function.body, (tirx.For, note_lanes))
    texts = {name: "\n".join(_function(name, count) for count in sorted(lanes)) for name in sorted(used)}
    return llvm_functions.with_functions(function, body, texts) if used else function


@functools.cache
def _operator(name: str) -> str:
    """The operator that stands for a function until there are vectors; registered with TVM for this process."""
    operator = f"tirx.{_PREFIX}{name}"
    ir._ffi_api.RegisterOp(operator, f"{name} of the C library, in vectors")
    attributes = {"TVectorizable": True, "TCallEffectKind": int(tirx.CallEffectKind.Pure.value)}
    for attribute, value in {**attributes, "TScriptPrinterName": f"{_PREFIX}{name}"}.items():
        ir.register_op_attr(operator, attribute, value)

    def lowered(call: ir.Call) -> ir.Expr:
        dtype = str(call.ty.dtype)
        return tirx.call_extern(dtype, _name(name, int(dtype.partition("x")[2] or 1)), call.args[0])

    tirx.op.register_intrin_lowering(operator, target="llvm", f=lowered)
    return operator


@functools.cache
def _function(name: str, lanes: int) -> str:
    """The text of a function for so many lanes."""
    return Code(lanes).function(_name(name, lanes), vector_math.FUNCTIONS[name])


def _name(name: str, lanes: int) -> str:
    return f"{_PREFIX}{name}_{lanes}"
