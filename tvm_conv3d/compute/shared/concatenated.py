"""Channels of several arrays side by side: runs copied by all threads, declared without a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import IRModule, tirx

from tvm_conv3d.compute.shared import pointers

Expr = Any  # a TVM expression; its classes are not public names

#: Bytes of a vector.
_VECTOR = 64


def module(count: int, bits: int) -> IRModule:
    """The function concatenate(x0, ..., out, numbers) of `count` arrays of elements of some bits.

    It takes the addresses of the arrays (positions, channels of each), of the result (positions, all channels), and of
    integers of 64 bits: positions, positions of a task, channels of all arrays, then of each.
    """
    dtype, lanes = f"uint{bits}", 8 * _VECTOR // bits
    addresses = [tirx.Var(f"x{i}", "handle") for i in range(count)]
    addresses += [tirx.Var(name, "handle") for name in ("out", "numbers")]
    types = [*(dtype for _ in range(count + 1)), "int64"]
    *arrays, out, numbers = (
        tirx.decl_buffer((pointers.UNKNOWN,), kind, f"{pointer.name}_array", data_alignment=bits // 8)
        for pointer, kind in zip(addresses, types, strict=True)
    )
    given = [tirx.Var(f"number{i}", "int64") for i in range(3 + count)]
    positions, together, total, *channels = given
    task = tirx.Var("task", "int64")
    first = task * together
    last = tirx.min(positions, first + together)
    copies, before = [], tirx.const(0, "int64")
    for array, each in zip(arrays, channels, strict=True):
        copies.append(_runs(array, out, (first, last), each, (total, before), lanes))
        before = before + each
    tasks = tirx.truncdiv(positions + together - 1, together)
    loop: tirx.Stmt = tirx.For(task, 0, tasks, tirx.ForKind.PARALLEL, tirx.SeqStmt(copies) if count > 1 else copies[0])
    declared = [tirx.DeclBuffer(a, data=p) for a, p in zip((*arrays, out, numbers), addresses, strict=True)]
    read = [tirx.Bind(name, tirx.BufferLoad(numbers, [i])) for i, name in enumerate(given)]
    whole = tirx.PrimFunc(addresses, tirx.SeqStmt([*declared, *read, pointers.on_cpu(loop)]))
    return pointers.module({"concatenate": whole})


def _runs(
    array: Expr, out: Expr, positions: Sequence[Expr], channels: Expr, place: Sequence[Expr], lanes: int
) -> tirx.Stmt:
    """The channels of an array at some positions, copied behind the first ones of each position of the result."""
    total, before = place
    position, part = (tirx.Var(name, "int64") for name in ("position", "part"))
    lane = tirx.Var("lane", "int32")

    def copy(at: Expr) -> tirx.Stmt:
        element = tirx.BufferLoad(array, [position * channels + at])
        return tirx.BufferStore(out, element, [position * total + before + at])

    # where the last vector is not whole, it begins earlier
    at = tirx.min(part * lanes, channels - lanes)
    vector = tirx.For(lane, 0, lanes, tirx.ForKind.VECTORIZED, copy(at + lane.astype("int64")))
    vectors = tirx.For(part, 0, tirx.truncdiv(channels + lanes - 1, lanes), tirx.ForKind.SERIAL, vector)
    single = tirx.Var("channel", "int64")
    elements = tirx.For(single, 0, channels, tirx.ForKind.SERIAL, copy(single))
    run = tirx.IfThenElse(channels >= lanes, vectors, elements)
    return tirx.For(position, positions[0], positions[1] - positions[0], tirx.ForKind.SERIAL, run)
