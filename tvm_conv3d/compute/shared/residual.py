"""The residual operand: a tensor like the output, of which an element is read where that of the output is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.shared.argument import RESIDUAL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.tiled_output import Tiling

Expr = Any  # a TVM expression; its classes are not public names


class Residual:
    """The residual operand of a declaration, which may have none.

    Attributes:
        tensors: its placeholder, if there is one, as declarations list it before the output.
    """

    def __init__(self, spec: CanonicalSpec, shape: Sequence[int]) -> None:
        """Declares it in `shape`: that of the output, maybe with other axes of the same memory."""
        self._spec = spec
        dtype = storage_dtype(spec.dtypes.output)
        self.tensors = (te.placeholder(tuple(shape), dtype, name=RESIDUAL),) if spec.residual else ()

    def at(self, *index: Expr) -> Expr:
        """Its element at `index`, in the accumulator's type; None where there is no residual operand."""
        for tensor in self.tensors:
            return widen(tensor[index], self._spec.dtypes.output, self._spec.accumulator)
        return None

    def in_tile(self, tiling: Tiling, declared: Sequence[Expr]) -> Expr:
        """:meth:`at` the place of a declared element of an output in tiles, of which some may not exist: then zero."""
        if not self.tensors:
            return None
        value = self.at(*tiling.real(declared))
        return tirx.if_then_else(tiling.exists(declared), value, tirx.const(0, self._spec.accumulator))
