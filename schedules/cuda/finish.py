"""What is changed in a GPU's scheduled function that no schedule primitive expresses, whatever the algorithm."""

from __future__ import annotations

import tvm_ffi
from tvm import IRModule, tirx
from tvm.s_tir import SBlock, SBlockRealize

from tvm_conv3d.compute.cuda.tensor_gemm import EDGE
from tvm_conv3d.compute.shared.tiled_output import outside_of_block, restore_layout
from tvm_conv3d.schedules import long_sums
from tvm_conv3d.schedules.cuda.common import REGISTERS
from tvm_conv3d.schedules.cuda.wmma import START, add_fragments

#: Annotation of a loop that runs only where the block in it adds anything but zero.
IF_NONZERO = "tvm_conv3d.if_nonzero"

#: How tensor cores sum.
_INSTRUCTIONS = {START: long_sums.Summing(EDGE, add_fragments)}


def finished(module: IRModule) -> IRModule:
    """A scheduled function with marked loops under their condition, the user's layout, and long sums in parts."""
    body = tvm_ffi.structural_map(module["main"].body, (tirx.For, _guarded))
    main = module["main"].with_body(body)
    for registers in _registers(body):
        main = main.with_attr(REGISTERS, registers)
    guarded = IRModule({"main": main})
    return long_sums.in_parts(restore_layout(guarded), on_gpu=True, instructions=_INSTRUCTIONS)


def _registers(body: tirx.Stmt) -> list[int]:
    """What the loops over blocks say of the registers of a thread."""
    found: list[int] = []

    def note(loop: tirx.For) -> None:
        if REGISTERS in loop.annotations:
            found.append(int(loop.annotations[REGISTERS]))

    tvm_ffi.structural_walk(body, ((tirx.For, note),))
    return found


def _guarded(loop: tirx.For) -> tirx.Stmt:
    if IF_NONZERO not in loop.annotations:
        return loop
    plain = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body)
    return tirx.IfThenElse(_condition(loop), plain, None)


def _condition(loop: tirx.For) -> tirx.Expr:
    """Under which the block in `loop` adds anything but zero."""
    found: list[SBlockRealize] = []

    def note(realize: SBlockRealize) -> None:
        found.append(realize)

    tvm_ffi.structural_walk(loop.body, ((SBlockRealize, note),))
    realize = found[-1]
    block: SBlock = realize.block
    _, added = block.body.value.a, block.body.value.b
    values = list(zip(block.iter_vars, realize.iter_values, strict=True))
    return outside_of_block(added.args[0], values)
