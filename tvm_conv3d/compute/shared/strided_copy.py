"""Copies of strided arrays into contiguous ones, each element cast: loops over memory, declared without a schedule.

Tasks are tiles along two axes. Where the source lies in the target's order, or nearly so, elements go straight over;
else a tile goes through a stage in the first cache, so that both sides are moved in runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import IRModule, tirx

from tvm_conv3d.compute.shared import pointers
from tvm_conv3d.compute.shared.copy_order import AXES, STAGED, STRAIGHT, TILE
from tvm_conv3d.compute.shared.elements import narrow, storage_dtype, widen

Expr = Any  # a TVM expression; its classes are not public names

#: Elements from one row of the stage to the next: rows a power of two apart would share few places of a cache.
_STAGE_ROW = TILE + 16


def module(function: str, source: str, target: str) -> IRModule:
    """The function of this name for elements of type `source`, copied as `target`.

    It takes pointers to the first elements of source and target and to integers of 64 bits: five extents, five strides
    of the source and five of the target, in elements, then the rows and columns of a tile, which lie along the last
    two axes.
    """
    move = {STRAIGHT: _straight, STAGED: _staged}[function]
    addresses = [tirx.Var(word, "handle") for word in ("source", "target", "numbers")]
    types = (_storage(source), _storage(target), "int64")
    arrays = [
        tirx.decl_buffer((pointers.UNKNOWN,), dtype, f"{pointer.name}_array")
        for pointer, dtype in zip(addresses, types, strict=True)
    ]
    given = [tirx.Var(f"number{i}", "int64") for i in range(3 * AXES + 2)]
    extents, reads, writes, tile = (given[i : i + AXES] for i in range(0, len(given), AXES))
    task = tirx.Var("task", "int64")
    counts = [*extents[:-2], *(_ceildiv(e, size) for e, size in zip(extents[-2:], tile, strict=True))]
    first = _unravel(task, counts)
    first[-2:] = [i * size for i, size in zip(first[-2:], tile, strict=True)]
    corner = [tirx.Var(word, "int64") for word in ("read", "write", "rows", "columns")]
    sizes = [tirx.min(size, e - i) for size, e, i in zip(tile, extents[-2:], first[-2:], strict=True)]

    def load(row: Expr, column: Expr) -> Expr:
        place = corner[0] + row * reads[-2] + column * reads[-1]
        return _cast(tirx.BufferLoad(arrays[0], [place]), source, target)

    def store(row: Expr, column: Expr, value: Expr) -> tirx.Stmt:
        return tirx.BufferStore(arrays[1], value, [corner[1] + row * writes[-2] + column * writes[-1]])

    body = [
        *_bound(corner, [_dot(first, reads), _dot(first, writes), *sizes]),
        *move(corner[2:], load, store, types[1]),
    ]
    loop = tirx.For(task, 0, math.prod(counts[1:], start=counts[0]), tirx.ForKind.PARALLEL, tirx.SeqStmt(body))
    declared = [tirx.DeclBuffer(array, data=pointer) for array, pointer in zip(arrays, addresses, strict=True)]
    read = _bound(given, [tirx.BufferLoad(arrays[2], [i]) for i in range(len(given))])
    whole = tirx.PrimFunc(addresses, tirx.SeqStmt([*declared, *read, pointers.on_cpu(loop)]))
    return pointers.module({function: whole})


#: (row, column) -> the element there as the target has it; (row, column, value) -> the statement that stores it.
_Load = Callable[[Expr, Expr], Expr]
_Store = Callable[[Expr, Expr, Expr], tirx.Stmt]


def _straight(sizes: Sequence[Expr], load: _Load, store: _Store, dtype: str) -> list[tirx.Stmt]:
    return [_loops(sizes, lambda row, column: store(row, column, load(row, column)))]


def _staged(sizes: Sequence[Expr], load: _Load, store: _Store, dtype: str) -> list[tirx.Stmt]:
    stage = tirx.decl_buffer((TILE * _STAGE_ROW,), dtype, "stage")

    def place(row: Expr, column: Expr) -> list[Expr]:
        return [row * _STAGE_ROW + column]

    fill = _loops(sizes[::-1], lambda column, row: tirx.BufferStore(stage, load(row, column), place(row, column)))
    empty = _loops(sizes, lambda row, column: store(row, column, tirx.BufferLoad(stage, place(row, column))))
    return [tirx.AllocBuffer(stage), fill, empty]


def _loops(sizes: Sequence[Expr], body: Callable[[Expr, Expr], tirx.Stmt]) -> tirx.For:
    outer, inner = (tirx.Var(name, "int64") for name in ("outer", "inner"))
    loop = tirx.For(inner, 0, sizes[1], tirx.ForKind.SERIAL, body(outer, inner))
    return tirx.For(outer, 0, sizes[0], tirx.ForKind.SERIAL, loop)


def _bound(names: Sequence[tirx.Var], values: Sequence[Expr]) -> list[tirx.Stmt]:
    return [tirx.Bind(name, value) for name, value in zip(names, values, strict=True)]


def _unravel(number: Expr, counts: Sequence[Expr]) -> list[Expr]:
    """The index along each axis of element `number` in C order."""
    found: list[Expr] = []
    for count in reversed(counts[1:]):
        found.insert(0, tirx.truncmod(number, count))
        number = tirx.truncdiv(number, count)
    return [number, *found]


def _dot(index: Sequence[Expr], strides: Sequence[Expr]) -> Expr:
    first, *others = (i * stride for i, stride in zip(index, strides, strict=True))
    return sum(others, start=first)


def _ceildiv(a: Expr, b: Expr) -> Expr:
    return tirx.truncdiv(a + b - 1, b)


def _storage(dtype: str) -> str:
    return "uint8" if dtype == "bool" else storage_dtype(dtype)


def _cast(value: Expr, source: str, target: str) -> Expr:
    """A loaded element of type `source` as a stored one of type `target`, with NumPy's rounding."""
    if source == target:
        return value
    if source == "bool":
        value, source = (value != 0).astype("uint8"), "uint8"
    if source in ("float16", "bfloat16"):
        value, source = widen(value, source, "float32"), "float32"
    if target in ("float16", "bfloat16"):
        to_odd = target == "float16" and source == "float64"
        value = _rounded_to_odd(value) if to_odd else value.astype("float32")
        return narrow(value, target, "float32")
    return value.astype(target)


def _rounded_to_odd(value: Expr) -> Expr:
    """float64 as float32, rounded to odd: rounded further, to a half type, it is `value` rounded once."""
    near = value.astype("float32")
    back = near.astype("float64")
    bits = tirx.reinterpret("uint32", near)
    too_far = tirx.abs(back) > tirx.abs(value)
    bits = tirx.Select(too_far, bits - tirx.const(1, "uint32"), bits)
    bits = tirx.Select(back != value, bits | tirx.const(1, "uint32"), bits)
    return tirx.reinterpret("float32", bits)
