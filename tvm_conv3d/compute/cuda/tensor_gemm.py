"""The implicit matrix product of half types on tensor cores: factors as they are stored, sums in float32.

Stages and arguments are those of :mod:`tvm_conv3d.compute.cuda.implicit_gemm`; the gathered matrix has its rows the way
the instructions read them, and weights keep the half type.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from tvm import te

from tvm_conv3d.compute.cuda import implicit_gemm
from tvm_conv3d.compute.cuda.implicit_gemm import GemmBuilder, error_bound
from tvm_conv3d.compute.cuda.variants import TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.packing import Weights
from tvm_conv3d.compute.shared.stages import zero_unless
from tvm_conv3d.spec import CHANNELS_FIRST

__all__ = ["TensorVariant", "declare", "declare_packing", "error_bound"]

#: Rows, columns and depth of one product of tensor cores.
EDGE = 16

#: Positions of a tile of the input that is turned.
TURNED_POSITIONS = 64

Expr = Any  # a TVM expression; its classes are not public names


def vector_of_positions(spec: CanonicalSpec) -> int:
    """Neighbouring positions of the input that a thread reads at once where it is turned."""
    return 2 if math.prod(spec.size) % 2 == 0 else 1


def declare(spec: CanonicalSpec, variant: TensorVariant) -> Declaration:
    """The TE declaration; arguments: input, packed weights, packed bias, output.

    Raises:
        ValueError: `spec` is of no half type, or `variant` reads or writes more at once than lies side by side, turns
            channels_last, or leaves a warp less than 16 terms of a step.
    """
    if spec.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"Tensor cores multiply float16 and bfloat16 here. Received: {spec.key()}")
    if variant.step % (EDGE * variant.warps_terms):
        raise ValueError(f"Each warp takes {EDGE} terms of a step, or a multiple. Received: {variant}")
    if variant.turned and spec.data_format != CHANNELS_FIRST:
        raise ValueError(f"Only channels_first is turned. Received: {variant} for {spec.key()}")
    return _Builder(spec, variant).declaration()


def declare_packing(spec: CanonicalSpec, variant: TensorVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (sets, filter blocks, kd, kh, kw, steps, step, filters), bfloat16 as its bits.
        Bias (sets, filter blocks, filters of a tile).
    """
    return implicit_gemm.packed_by(weights.stored, spec, variant, weights)


class _Builder(GemmBuilder):
    variant: TensorVariant

    def _turned(self, x: te.Tensor) -> te.Tensor:
        """The input as (sample, positions in whole tiles, channel), by way of a slab that a block turns."""
        spec = self.spec
        positions, along = math.prod(spec.size), spec.size[2]
        vector = vector_of_positions(spec)
        shape = (spec.batch, spec.channels, -(-positions // TURNED_POSITIONS) * TURNED_POSITIONS)

        def read(n, c, p):  # type: ignore[no-untyped-def]
            value = x[n, c, p // (along * spec.size[1]), p // along % spec.size[1], p % along]
            # in units of vectors, so that the condition does not vary inside one
            inside = [p // vector < positions // vector] if shape[2] > positions else []
            return zero_unless(inside, value, spec.dtype)

        slab = te.compute(shape, read, name="slab")
        return te.compute((shape[0], shape[2], shape[1]), lambda n, p, c: slab[n, c, p], name="turned")

    def _at(self, x: te.Tensor, sample: Expr, index: list[Expr], channel: Expr) -> Expr:
        if not self.variant.turned:
            return super()._at(x, sample, index, channel)
        _, height, width = self.spec.size
        return x[sample, (index[0] * height + index[1]) * width + index[2], channel]

    def _types(self) -> tuple[str, str]:
        return self.spec.dtype, self.spec.dtype

    def _factor(self, stored: Expr) -> Expr:
        return stored

    def _gather(self, x: te.Tensor) -> te.Tensor:
        """Terms innermost."""
        variant, e = self.variant, self.e
        vector = variant.vector
        if variant.turned:
            x = self._turned(x)
            self.kept = (x,)

        def at(*index):  # type: ignore[no-untyped-def]
            n, g, block, *turn, i, term = index
            taps, step = self._turn(turn)
            place = (step, term // vector, term % vector)
            return self._element(x, (n, block * variant.cells + i), g, taps, place)

        shape = (e.planes, self.spec.sets, e.cell_blocks, *self.turns, variant.cells, variant.step)
        return te.compute(shape, at, name="gather")

    def _place(self, i: Expr, term: Expr) -> tuple[Expr, ...]:
        return i, term

    def _shares(self) -> int:
        return self.variant.warps_terms

    def _product(self, gather: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        """The sums of a tile: those of the warps that share it, added."""
        product = super()._product(gather, kernel)
        if self._shares() == 1:
            return product
        *outer, warps, cells, filters = (int(extent) for extent in product.shape)

        def added(*at):  # type: ignore[no-untyped-def]
            *tile, i, j = at
            return functools.reduce(operator.add, (product[(*tile, warp, i, j)] for warp in range(warps)))

        return te.compute((*outer, cells, filters), added, name="added")
