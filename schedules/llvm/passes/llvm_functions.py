"""Functions given as LLVM IR, for what TVM's code generator has no expression for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from tvm_conv3d.target.cpu import CpuTraits, cpu_traits
from tvm_conv3d.target.description import Target

#: Types of elements for which there are such functions: LLVM's name and the bytes of each.
TYPES = {"float32": ("float", 4), "float64": ("double", 8)}


def with_functions(function: tirx.PrimFunc, body: Any, texts: Mapping[str, str]) -> tirx.PrimFunc:
    """`function` with a body that may call functions given by name -> text."""
    for text in texts.values():
        body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", ir.StringImm(text), body)
    return function.with_body(body)


def with_calls(
    function: tirx.PrimFunc, names: Iterable[str], calls: Callable[[tirx.For, CpuTraits, dict[str, str]], Any]
) -> tirx.PrimFunc:
    """`function` with the loops that have one of these annotations replaced by calls, for the target of this scope.

    Args:
        function: lowered to loops.
        names: of the annotations.
        calls: (loop, CPU, name -> text of functions) -> statement; adds the functions that it calls.
    """
    traits = cpu_traits(Target.of_scope())
    texts: dict[str, str] = {}

    def on_loop(loop: tirx.For) -> Any:
        return calls(loop, traits, texts) if any(name in loop.annotations for name in names) else loop

    return with_functions(function, tvm_ffi.structural_map(function.body, (tirx.For, on_loop)), texts)


def call(name: str, *arguments: Any) -> Any:
    """A statement that calls one of them."""
    return tirx.Evaluate(tirx.call_extern("void", name, *arguments))


def address(buffer: Any, place: Any, access: str) -> Any:
    """Where element `place` of a buffer lies, for a function that reads ("r") or writes ("w") from there on.

    TVM shrinks buffers to what it sees accessed. Of the address of a load it sees that one element, of this one all.
    """
    return buffer.access_ptr(access, offset=place)
