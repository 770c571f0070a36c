"""Outputs declared as whole tiles, brought into the user's layout after scheduling.

A schedule places stages well only where every tile is whole, and where what a tile reads is indexed by the loops over
that tile. So a declaration may have its output in whole tiles, padded behind the end of each axis. Once scheduled, the
store goes to the user's layout, under the predicate that its element is valid there.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import PrimFunc

from tvm_conv3d.compute.shared import parameters

#: Attribute of a function whose output is declared in tiles.
_TILING = "tvm_conv3d.tiling"

#: Name of the block that stores the output, and of the parameter it stores to.
STORE = "out"


#: A part of a real index: the declared axis, what it is multiplied with, divided by before that, and reduced modulo (0:
#: not at all).
Term = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """How the axes of a declared output make those of the real one.

    Attributes:
        shape: of the real output.
        axes: for each of its axes the terms whose sum its index is.
        flat: declared axes with factors whose sum is one more axis for the terms, after all declared ones.
        count: number of positions on that axis; those from there on are padding.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[Term, ...], ...]
    flat: tuple[tuple[int, int], ...] = ()
    count: int = 0

    def real(self, declared: Sequence[Any]) -> list[Any]:
        """Where the element at the index `declared` lies in the real output; maybe behind its end."""
        indices = [*declared, _sum(declared, self.flat)] if self.flat else declared
        return [_total([_term(indices, *entry) for entry in axis]) for axis in self.axes]

    def exists(self, declared: Sequence[Any]) -> Any:
        """The predicate that the element is valid in the real output."""
        counted = [_sum(declared, self.flat) < self.count] if self.flat else []
        return tirx.all(*(i < n for i, n in zip(self.real(declared), self.shape, strict=True)), *counted)


def term(axis: int, factor: int = 1, divisor: int = 1, modulus: int = 0) -> Term:
    """`axis // divisor % modulus * factor`."""
    return axis, factor, divisor, modulus


def mark(function: PrimFunc, tiling: Tiling) -> PrimFunc:
    """Notes the tiling for :func:`restore_layout`."""
    return function.with_attr(_TILING, json.dumps(asdict(tiling)))


def is_tiled(module: IRModule) -> bool:
    """Whether the output of `main` is declared in tiles and not brought into the real layout yet."""
    return _TILING in (module["main"].attrs or {})


def restore_layout(module: IRModule) -> IRModule:
    """The scheduled `main` with its output in the real layout."""
    function = module["main"]
    tiling = Tiling(**json.loads(str(function.attrs[_TILING])))
    function = _reshaped(function.without_attr(_TILING), tiling.shape)

    def rewritten(realize: SBlockRealize) -> SBlockRealize:
        block = realize.block
        if block.name_hint != STORE:
            return realize
        store = block.body
        real = tiling.real(store.indices)
        moved = SBlock(
            block.iter_vars,
            block.reads,
            [tirx.BufferRegion(store.buffer, [ir.Range.from_min_extent(index, 1) for index in real])],
            block.name_hint,
            tirx.BufferStore(store.buffer, store.value, real),
        )
        values = list(zip(block.iter_vars, realize.iter_values, strict=True))
        extents = [int(axis.dom.extent) for axis in block.iter_vars]
        if tiling.flat:
            extents.append(sum(factor * (extents[number] - 1) for number, factor in tiling.flat) + 1)
        limits = [
            (index, extent)
            for index, axis, extent in zip(real, tiling.axes, tiling.shape, strict=True)
            if sum(_largest(extents, *entry) for entry in axis) >= extent
        ]
        if tiling.flat and extents[-1] > tiling.count:
            limits.append((_sum(store.indices, tiling.flat), tiling.count))
        exists = [outside_of_block(index, values) < extent for index, extent in limits]
        return SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *exists), moved)

    body = tvm_ffi.structural_map(function.body, (SBlockRealize, rewritten))
    return IRModule({"main": function.with_body(body)})


def _sum(indices: Sequence[Any], axes: Sequence[Sequence[int]]) -> Any:
    return _total([indices[number] * factor for number, factor in axes])


def _total(terms: Sequence[Any]) -> Any:
    return functools.reduce(operator.add, terms)


def _term(indices: Sequence[Any], axis: int, factor: int, divisor: int, modulus: int) -> Any:
    quotient = indices[axis] // divisor if divisor > 1 else indices[axis]
    rest = quotient % modulus if modulus else quotient
    return rest * factor if factor > 1 else rest


def _largest(extents: Sequence[int], axis: int, factor: int, divisor: int, modulus: int) -> int:
    largest = (extents[axis] - 1) // divisor
    return factor * (min(largest, modulus - 1) if modulus else largest)


def outside_of_block(expression: Any, values: Sequence[tuple[Any, Any]]) -> Any:
    """An expression of a block's body as known outside of it; `values` are its axes and what they are bound to."""

    def outside(var: ir.Var) -> Any:
        return next((value for axis, value in values if axis.var.same_as(var)), var)

    return tvm_ffi.structural_map(expression, (ir.Var, outside))


def _reshaped(function: PrimFunc, shape: Sequence[int]) -> PrimFunc:
    """`function` with another shape of its output."""
    old = next(parameter for parameter in function.params if parameter.name == STORE)
    index = str(old.ty.shape[0].ty.dtype)
    extents = [tirx.const(extent, index) for extent in shape]
    return parameters.replaced(function, {STORE: parameters.like(old, extents)})
