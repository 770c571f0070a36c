"""Functions given as LLVM IR, for what TVM's code generator has no expression for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx

#: Types of elements for which there are such functions: LLVM's name and the bytes of each.
TYPES = {"float32": ("float", 4), "float64": ("double", 8)}


def noted(module: IRModule, attribute: str) -> bool:
    """Whether a function has notes of this name."""
    found: list[bool] = []
    body = module["main"].body
    tvm_ffi.structural_walk(body, (tirx.AttrStmt, lambda note: found.append(note.attr_key == attribute)))
    return any(found)


def with_functions(body: Any, texts: Iterable[str]) -> Any:
    """`body` with functions that it may call."""
    for text in texts:
        body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", ir.StringImm(text), body)
    return body


def call(name: str, *arguments: Any) -> Any:
    """A statement that calls one of them."""
    return tirx.Evaluate(tirx.call_extern("void", name, *arguments))


def address(buffer: Any, place: Any, access: str) -> Any:
    """Where element `place` of a buffer lies, for a function that reads ("r") or writes ("w") from there on.

    TVM shrinks buffers to what it sees accessed. Of the address of a load it sees that one element, of this one all.
    """
    return buffer.access_ptr(access, offset=place)
