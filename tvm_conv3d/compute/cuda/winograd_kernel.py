"""The weights of Winograd convolutions on a GPU: transformed, and as they were for tiles whose sums are not finite."""

from __future__ import annotations

import math

from tvm import te, tirx

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.cuda.winograd_extents import Extents, extents_of
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import transforms
from tvm_conv3d.compute.shared.packing import Weights, bias_in_blocks
from tvm_conv3d.compute.shared.winograd_packing import taps_of_phases, transformed_taps


def plain_from(e: Extents) -> int:
    """The first of the packed kernel's matrices that holds a tap as it was: those of frequencies come before."""
    return math.prod(e.frequencies) * e.taps


def declare_packing(spec: CanonicalSpec, variant: WinogradGemmVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (frequencies times depth's taps, then all taps as they were; blocks of filters, channels in whole steps,
        filters).
        Bias (filters in whole blocks,).
    """
    e = extents_of(spec, variant)
    read = taps_of_phases(spec, e.axes, weights)
    channels, filters = e.steps * variant.step, variant.filters

    def taps_at(taps, tap, block, channel, i):  # type: ignore[no-untyped-def]
        filter_ = block * filters + i
        inside = [channel < e.axes.channels] if channels > e.axes.channels else []
        inside += [filter_ < spec.filters] if spec.filters % filters else []
        # an untransformed depth keeps its taps, and no tap is transformed there
        depth = tap if e.taps > 1 else taps[0]
        return read((depth, *taps[1:]), channel, filter_, inside)

    depth, high, wide = e.axes.taps
    taps = (depth // e.taps, high, wide)
    matrices = [transforms(m, t).kernel for m, t in zip(variant.tile, taps, strict=True)]
    plain, there = transformed_taps(taps_at, taps, matrices, (e.taps, e.filter_blocks, channels, filters), False)
    _, rows, columns = e.frequencies
    first = plain_from(e)

    def kernel_at(number, block, channel, i):  # type: ignore[no-untyped-def]
        f, tap = number // e.taps, number % e.taps
        sums = there(f // (rows * columns), f // columns % rows, f % columns, tap, block, channel, i)
        d, h, w = (number - first) // (high * wide), (number - first) // wide % high, (number - first) % wide
        as_it_was = plain(*((0, h, w, d) if e.taps > 1 else (d, h, w, 0)), block, channel, i)
        return tirx.if_then_else(number < first, sums, as_it_was).astype(spec.accumulator)

    kernel = te.compute((first + depth * high * wide, *plain.shape[-3:]), kernel_at, name=PACKED_KERNEL)
    return kernel, bias_in_blocks(weights, spec.filters, (e.filter_blocks * filters,))
