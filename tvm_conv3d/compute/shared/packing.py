"""Packing in TE: the user's weights in the layout that a convolution reads, as a function compiled beside it.

Each algorithm has `declare_packing(spec, variant, weights)`, which gives its packed kernel and packed bias. Weights are
read through a :data:`Reader`: which of the user's weights stands at a tap, channel and filter of the convolution that
is computed is decided there, once for all algorithms.

Stages, each a block that a schedule places:

taps                          of Winograd: the weights under transform, in float64
kernel_w, kernel_h, kernel_d  their transforms along each transformed axis
packed_kernel, packed_bias    the store
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import IRModule, te, tirx

from tvm_conv3d.compute.shared import phases
from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, PACK, PACKED_BIAS
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import WIDE, unaligned
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.stages import zero_unless
from tvm_conv3d.spec import FORWARD

Expr = Any  # a TVM expression; its classes are not public names

#: (taps along depth, height and width, channel of a group, filter) -> the weight as it is stored; taps are those that
#: the algorithm computes with, from zero on.
Reader = Callable[[Sequence[Expr], Expr, Expr], Expr]


@dataclass(frozen=True)
class Weights:
    """The user's weights, as an algorithm's packing reads them.

    Attributes:
        arguments: kernel, and bias where there is one: what the reading is of.
        read: one weight.
        value_of: of a filter, the number of its value among the user's bias.
        dtype: element type of the user's weights, by its name in specs.
        accumulator: type of the packed ones.
    """

    arguments: tuple[te.Tensor, ...]
    read: Reader
    value_of: Callable[[Expr], Expr]
    dtype: str
    accumulator: str

    @classmethod
    def of(cls, spec: CanonicalSpec) -> Weights:
        """Those of `spec`, of which taps that see padding only are left out.

        Arguments: kernel of the origin's `kernel_shape`, and where the spec has one bias, of one value for each channel
        of the origin's result, both of the spec's storage type.
        """
        stored = storage_dtype(spec.dtype)
        kernel = te.placeholder(spec.origin.kernel_shape, stored, name=KERNEL)
        bias = (te.placeholder((spec.origin.result_channels,), stored, name=BIAS),) if spec.bias else ()
        read = valid_taps(spec, kernel) if spec.origin.direction == FORWARD else transposed(spec, kernel)
        return cls((kernel, *bias), read, lambda filter_: channel_of(spec, filter_), spec.dtype, spec.accumulator)

    def stored(self, taps: Sequence[Expr], channel: Expr, filter_: Expr, inside: Iterable[Expr] = ()) -> Expr:
        """A weight as it is stored, or zero where one of the conditions `inside` does not hold."""
        return zero_unless(inside, self.read(taps, channel, filter_), storage_dtype(self.dtype))

    def kernel(self, taps: Sequence[Expr], channel: Expr, filter_: Expr, inside: Iterable[Expr] = ()) -> Expr:
        """The same in the accumulator's type."""
        value = widen(self.read(taps, channel, filter_), self.dtype, self.accumulator)
        return zero_unless(inside, value, self.accumulator)

    def bias(self, filter_: Expr, inside: Iterable[Expr] = ()) -> Expr:
        """A filter's bias in the accumulator's type, zero where there is none."""
        if len(self.arguments) == 1:
            return tirx.const(0, self.accumulator)
        value = widen(self.arguments[1](self.value_of(filter_)), self.dtype, self.accumulator)
        return zero_unless(inside, value, self.accumulator)


#: (spec, variant, weights) -> packed kernel and packed bias.
DeclarePacking = Callable[[CanonicalSpec, Any, Weights], tuple[te.Tensor, te.Tensor]]


def valid_taps(spec: CanonicalSpec, kernel: te.Tensor) -> Reader:
    """Reads the taps that are left."""
    first = [taps[0] for (taps,) in spec.taps]

    def read(taps: Sequence[Expr], channel: Expr, filter_: Expr) -> Expr:
        return kernel(*(tap + start for tap, start in zip(taps, first, strict=True)), channel, filter_)

    return read


def transposed(spec: CanonicalSpec, kernel: te.Tensor) -> Reader:
    """Reads those of a data gradient: filters and channels exchanged, zero where a phase has no tap."""

    def read(taps: Sequence[Expr], channel: Expr, filter_: Expr) -> Expr:
        number = filter_ // spec.set_filters
        there = [phases.has_tap(spec, axis, number, tap) for axis, tap in enumerate(taps)]
        theirs = [phases.tap_of_origin(spec, axis, number, tap) for axis, tap in enumerate(taps)]
        read_channel = phases.group(spec, number) * spec.group_channels + channel
        value = kernel(*theirs, filter_ % spec.set_filters, read_channel)
        return zero_unless([condition for condition in there if condition is not None], value, str(kernel.dtype))

    return read


def channel_of(spec: CanonicalSpec, filter_: Expr) -> Expr:
    """The channel of the result that a filter is of."""
    if not spec.phased:
        return filter_
    number = filter_ // spec.set_filters
    return phases.group(spec, number) * spec.set_filters + filter_ % spec.set_filters


def bias_in_blocks(weights: Weights, filters: int, shape: Sequence[int]) -> te.Tensor:
    """The packed bias where filters are numbered through `shape`, with zeros up to its end."""

    def at(*index: Expr) -> Expr:
        filter_ = index[0]
        for i, extent in zip(index[1:], shape[1:], strict=True):
            filter_ = filter_ * extent + i
        return weights.bias(filter_, [filter_ < filters] if math.prod(shape) > filters else [])

    return te.compute(tuple(shape), at, name=PACKED_BIAS)


def bias_of_groups(weights: Weights, spec: CanonicalSpec, blocks: int, filters: int) -> te.Tensor:
    """The packed bias as (sets, blocks, filters of a block), with zeros up to whole blocks of each set."""
    each = spec.set_filters

    def at(number_of_set: Expr, block: Expr, i: Expr) -> Expr:
        number = block * filters + i
        return weights.bias(number_of_set * each + number, [number < each] if blocks * filters > each else [])

    return te.compute((spec.sets, blocks, filters), at, name=PACKED_BIAS)


def module(spec: CanonicalSpec, variant: Any, declare_packing: DeclarePacking, aligned: bool = False) -> IRModule:
    """The function `pack`, unscheduled: (kernel, bias where the spec has one, packed kernel, packed bias).

    Args:
        spec: the problem.
        variant: of the algorithm.
        declare_packing: the algorithm's.
        aligned: the arguments lie at multiples of 16 bytes, as all memory of GPUs does.
    """
    weights = Weights.of(spec)
    tensors = [*weights.arguments, *declare_packing(spec, variant, weights)]
    wide = max(math.prod(map(int, tensor.shape)) for tensor in tensors) >= WIDE
    function = te.create_prim_func(tensors, index_dtype_override="int64" if wide else None)
    function = function if aligned else unaligned(function)
    return IRModule({PACK: function.with_attr("global_symbol", PACK)})
