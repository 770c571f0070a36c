"""Functions given as LLVM IR, for what TVM's code generator does not express; LLVM puts them where they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import ir, tirx

#: LLVM's name and the bytes of the element types that such functions take.
LLVM_TYPES = {"float32": ("float", 4), "float64": ("double", 8)}


def imported(body: Any, texts: Mapping[str, str]) -> Any:
    """A statement with the text of the functions that it calls, by their names."""
    for text in texts.values():
        body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", ir.StringImm(text), body)
    return body


def address(buffer: Any, place: Any, access: str) -> Any:
    """Where element `place` of a buffer lies, for a function that reads ("r") or writes ("w") from there on.

    TVM shrinks buffers to what it sees accessed. Of the address of a load it sees that one element, of this one all.
    """
    return buffer.access_ptr(access, offset=place)
