"""The implicit matrix product of half types on tensor cores: factors as they are stored, sums in float32.

Stages and arguments are those of :mod:`tvm_conv3d.compute.cuda.implicit_gemm`; the gathered matrix has its rows the way
the instructions read them, and weights keep the half type.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tvm_conv3d.compute.cuda import implicit_gemm
from tvm_conv3d.compute.cuda.implicit_gemm import GemmBuilder, error_bound
from tvm_conv3d.compute.cuda.variants import TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.packing import Weights

__all__ = ["TensorVariant", "declare", "declare_packing", "error_bound"]

Expr = Any  # a TVM expression; its classes are not public names


def declare(spec: CanonicalSpec, variant: TensorVariant) -> Declaration:
    """The TE declaration; arguments: input, packed weights, packed bias, output.

    Raises:
        ValueError: `spec` is of no half type, or `variant` reads or writes more at once than lies side by side.
    """
    if spec.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"Tensor cores multiply float16 and bfloat16 here. Received: {spec.key()}")
    return _Builder(spec, variant).declaration()


def declare_packing(spec: CanonicalSpec, variant: TensorVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (sets, filter blocks, kd, kh, kw, steps, step, filters), bfloat16 as its bits.
        Bias (sets, filter blocks, filters of a tile).
    """
    return implicit_gemm.packed_by(weights.stored, spec, variant, weights)


class _Builder(GemmBuilder):
    def _types(self) -> tuple[str, str]:
        return self.spec.dtype, self.spec.dtype

    def _factor(self, stored: Expr) -> Expr:
        return stored

    def _gather(self, x: te.Tensor) -> te.Tensor:
        """Terms innermost."""
        variant, e = self.variant, self.e
        vector = variant.vector

        def at(*index):  # type: ignore[no-untyped-def]
            n, g, block, *turn, i, term = index
            taps, step = self._turn(turn)
            place = (step, term // vector, term % vector)
            return self._element(x, (n, block * variant.cells + i), g, taps, place)

        shape = (e.planes, self.spec.sets, e.cell_blocks, *self.turns, variant.cells, variant.step)
        return te.compute(shape, at, name="gather")

    def _place(self, i: Expr, term: Expr) -> tuple[Expr, ...]:
        return i, term
