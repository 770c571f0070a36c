"""Other parameters of a function: TE has no knob for how they lie in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.tirx import PrimFunc


def like(parameter: Any, shape: Sequence[Any] | None = None, alignment: int | None = None) -> Any:
    """A parameter like `parameter`.

    Args:
        parameter: the example.
        shape: another one, in elements.
        alignment: another one of its address, in bytes.
    """
    kind = parameter.ty
    return tirx.decl_buffer(
        kind.shape if shape is None else shape,
        kind.dtype,
        parameter.name,
        data_alignment=kind.data_alignment if alignment is None else alignment,
        layout=kind.layout,
    )


def replaced(function: PrimFunc, new: Mapping[str, Any]) -> PrimFunc:
    """`function` with `new` in place of its parameters of these names."""
    parameters = [new.get(str(old.name), old) for old in function.params]
    pairs = [(old, by) for old, by in zip(function.params, parameters, strict=True) if not old.same_as(by)]

    def by(var: ir.Var) -> ir.Var:
        return next((other for old, other in pairs if var.same_as(old)), var)

    body = tvm_ffi.structural_map(function.body, (ir.Var, by))
    return PrimFunc(parameters, body, function.ret_type, function.attrs)
