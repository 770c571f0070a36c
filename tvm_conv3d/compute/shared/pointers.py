"""Functions of pointers: loops over memory, declared without a schedule, whose sizes are known at the call only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import IRModule, tirx
from tvm.script import tirx as T

#: A buffer's extent that only the caller knows.
UNKNOWN = 1 << 40


def elements(pointer: Any, dtype: str, align: int) -> Any:
    """In a `prim_func`, the elements behind one of its pointers.

    Args:
        pointer: an argument of the function.
        dtype: element type.
        align: of the address, in bytes.
    """
    return T.decl_buffer((UNKNOWN,), dtype, data=pointer, align=align)


def on_cpu(body: tirx.Stmt) -> tirx.Stmt:
    """`body` with the device whose memory it may ask for, which pointers, unlike arrays, do not tell."""
    for key, value in (("device_id", 0), ("device_type", 1)):
        body = tirx.AttrStmt(tirx.const(0, "int32"), key, tirx.const(value, "int32"), body)
    return body


def module(functions: Mapping[str, tirx.PrimFunc]) -> IRModule:
    """The functions under their names. Elements that one writes must not be read by another of its pointers."""
    attributes = {"tirx.noalias": True}
    return IRModule(
        {name: function.with_attr({"global_symbol": name, **attributes}) for name, function in functions.items()}
    )
