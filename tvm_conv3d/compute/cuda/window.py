"""Convolution with few filters a group on a GPU: each thread computes a few output positions of one filter, or of few.

There are no neighbours to share weights or sums with, so nothing goes through shared memory: a thread holds the input
under its positions' windows in registers, one depth tap and channel after the other, and caches serve its neighbours.
Where its positions lie along the depth, it is one tap of the height after the other.

Stages, each a block that a schedule places:

window    the input under the windows of a thread's positions, zeros outside of the input included
conv      the sums of a thread's positions
tile      bias and activation
out       the store in the user's layout
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvm_conv3d.compute.cuda.variants import WindowVariant
from tvm_conv3d.compute.shared.argument import PACKED_KERNEL
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.declaration import Declaration
from tvm_conv3d.compute.shared.elements import storage_dtype, widen
from tvm_conv3d.compute.shared.packing import Weights, bias_in_blocks
from tvm_conv3d.compute.shared.residual import Residual
from tvm_conv3d.compute.shared.stages import error_of_sums, finish, reduction, window_extents, zero_outside
from tvm_conv3d.compute.shared.tiled_output import Term, Tiling, term
from tvm_conv3d.spec import CHANNELS_LAST

Expr = Any  # a TVM expression; its classes are not public names

#: Neighbours in memory that a thread reads at once, at most; channels lie so in the packed weights, too.
_AT_ONCE = 4

#: Channels in float16 that it reads at once, at most; of bfloat16, held as integers, TVM writes no zeros so wide.
_HALVES_AT_ONCE = 8

#: Taps of a row up to which a thread holds the whole row, and so may read it in vectors.
MAX_HELD_TAPS = 25


def channels_at_once(spec: CanonicalSpec) -> int:
    """Channels of a group that a thread may read at once: neighbours in memory, of which groups have whole vectors."""
    many = spec.dtype == "float16" and spec.group_channels % _HALVES_AT_ONCE == 0
    return _HALVES_AT_ONCE if spec.data_format == CHANNELS_LAST and many else _weights_at_once(spec)


def _weights_at_once(spec: CanonicalSpec) -> int:
    """Channels of a group that lie side by side in the packed weights."""
    return _AT_ONCE if spec.data_format == CHANNELS_LAST and spec.group_channels % _AT_ONCE == 0 else 1


def _held(spec: CanonicalSpec) -> str:
    """The type of the window: widened vectors, but of more elements than a vector of the accumulator's type has."""
    return storage_dtype(spec.dtype) if channels_at_once(spec) > _AT_ONCE else spec.accumulator


def positions_at_once(spec: CanonicalSpec, variant: WindowVariant) -> int:
    """Positions of a row that a thread may read at once: neighbours in memory, in which all windows begin alike."""
    neighbours = spec.data_format != CHANNELS_LAST or spec.channels == 1
    apart = variant.columns == 1 and spec.dilation[2] > 1
    if not neighbours or apart or not 1 < spec.kernel[2] <= MAX_HELD_TAPS:
        return 1
    return math.gcd(_AT_ONCE, spec.size[2], variant.columns * spec.strides[2])


def declare(spec: CanonicalSpec, variant: WindowVariant) -> Declaration:
    """The TE declaration; arguments: input, packed weights, bias, output.

    Raises:
        ValueError: a thread has several filters whose channels do not lie side by side, or several planes and rows.
    """
    last = spec.data_format == CHANNELS_LAST
    tiles, lanes = (variant.planes, variant.rows, variant.columns), variant.lanes
    apart = not last or spec.group_channels > 1 or spec.group_filters > 1 or spec.filters % lanes > 0
    if lanes > 1 and apart:
        raise ValueError(f"{spec.key()} has no {lanes} filters whose channels lie side by side. Received: {variant}")
    if variant.planes > 1 < variant.rows:
        raise ValueError(f"a thread has several planes or several rows. Received: {variant}")
    counts = [-(-o // tile) for o, tile in zip(spec.out_size, tiles, strict=True)]
    x = te.placeholder(spec.input_shape, storage_dtype(spec.dtype), name="x")
    vector = _weights_at_once(spec)
    kernel = te.placeholder(_kernel_shape(spec), spec.accumulator, name="kernel")
    bias = te.placeholder((spec.filters,), spec.accumulator, name="bias")
    taps, channel = reduction(spec)

    # from the fastest to the slowest: what neighbouring threads compute lies side by side
    sizes = {**dict(zip("dhw", counts, strict=True)), "f": spec.filters // lanes, "n": spec.batch}
    order = "fwhdn" if last else "whdfn"
    count = math.prod(sizes.values())
    blocks = -(-count // variant.threads)
    strides = {name: math.prod(sizes[faster] for faster in order[:i]) for i, name in enumerate(order)}

    def tile_of(block: Expr, thread: Expr) -> dict[str, Expr]:
        """Sample, tiles of planes, rows and columns, and filters of a thread; the last ones' where it has none."""
        # TVM's numbers have 32 bits
        p = (block.astype("int64") if count >= 2**31 else block) * variant.threads + thread
        p = tirx.min(p, count - 1) if blocks * variant.threads > count else p
        return {name: p // strides[name] % sizes[name] for name in order}

    window = _window(spec, variant, x, blocks, tile_of)
    at_once, skipped = positions_at_once(spec, variant), _skipped(spec, variant)

    def conv_at(block, thread, *at):  # type: ignore[no-untyped-def]
        filter_ = tile_of(block, thread)["f"] * lanes + at[3]
        weight = kernel[taps[0], channel // vector, taps[1], taps[2], filter_, channel % vector]
        axes = zip(at, taps, tiles, spec.strides, spec.dilation, strict=False)
        d, h, w = (tap if tile == 1 else i * stride + tap * dilation for i, tap, tile, stride, dilation in axes)
        z = skipped + w
        seen = window[block, thread, d, h, z // at_once, z % at_once, at[3], channel]
        seen = seen if seen.dtype == spec.accumulator else widen(seen, spec.dtype, spec.accumulator)
        return te.sum(seen * weight, axis=[taps[0], channel, *taps[1:]])

    conv = te.compute((blocks, variant.threads, *tiles, lanes), conv_at, name="conv")

    def part(name: str, factor: int = 1) -> Term:
        return term(6, factor, strides[name], sizes[name])

    n, f = (part("n"),), (part("f"),)
    d, h, w = ((part(name, tile), term(2 + i)) for i, (name, tile) in enumerate(zip("dhw", tiles, strict=True)))
    # lanes apart, so that a vector exists or does not
    axes, shape = ((n, d, h, w, f) if last else (n, f, d, h, w)), spec.output_shape
    if lanes > 1:
        axes, shape = (*axes, (term(5),)), (*shape[:-1], spec.filters // lanes, lanes)
    tiling = Tiling(shape, axes, ((0, variant.threads), (1, 1)), count)
    residual = Residual(spec, shape)

    def finished(*index):  # type: ignore[no-untyped-def]
        block, thread, *_, lane = index
        added = residual.in_tile(tiling, index)
        return finish(spec, conv(*index), bias(tile_of(block, thread)["f"] * lanes + lane), added)

    names = ["b", "t", "p", "i", "j", "lane"]
    tile = te.compute(conv.shape, finished, name="tile", varargs_names=names)
    out = te.compute(conv.shape, lambda *at: tile[at], name="out", varargs_names=names)
    return Declaration((x, kernel, bias, *residual.tensors, out), tiling, aligned=True)


def _skipped(spec: CanonicalSpec, variant: WindowVariant) -> int:
    """Positions of a thread's first vector that lie before its windows."""
    return -spec.pads[2][0] % positions_at_once(spec, variant)


def _window(
    s: CanonicalSpec,
    variant: WindowVariant,
    x: te.Tensor,
    blocks: int,
    tile_of: Callable[[Expr, Expr], dict[str, Expr]],
) -> te.Tensor:
    """What a thread reads in one channel: the positions of all its planes, rows and columns, in vectors."""
    tiles = (variant.planes, variant.rows, variant.columns)
    # along an axis with a single position only the taps, else all positions from the first to the last window's end
    extents = [
        k if tile == 1 else (tile - 1) * stride + reach
        for k, tile, stride, reach in zip(s.kernel, tiles, s.strides, s.window, strict=True)
    ]
    steps = [dilation if tile == 1 else 1 for dilation, tile in zip(s.dilation, tiles, strict=True)]
    at_once, skipped = positions_at_once(s, variant), _skipped(s, variant)
    extents[2] = -(-(skipped + extents[2]) // at_once)
    covered = [-(-o // tile) * tile for o, tile in zip(s.out_size, tiles, strict=True)]
    # along the width all in units of vectors, so that no condition varies inside one
    befores = [before for before, _ in s.pads]
    befores[2] = -(-befores[2] // at_once)
    size = (*s.size[:2], s.size[2] // at_once)
    padded = window_extents(s, covered)
    padded[2] = -(-(skipped + padded[2]) // at_once)

    held = _held(s)
    # tiles begin so far apart
    apart = [tile * stride for tile, stride in zip(tiles, s.strides, strict=True)]
    apart[2] //= at_once

    def at(block, thread, *index):  # type: ignore[no-untyped-def]
        *steps_on, near, lane, c = index
        tile = tile_of(block, thread)
        channel = (tile["f"] * variant.lanes + lane) // s.group_filters * s.group_channels + c
        where = [
            tile[name] * far + on * step for name, far, on, step in zip("dhw", apart, steps_on, steps, strict=True)
        ]

        def read(position: list[Expr]) -> Expr:
            position = [*position[:2], position[2] * at_once + near]
            index = (tile["n"], *position, channel) if last else (tile["n"], channel, *position)
            return widen(x[index], s.dtype, s.accumulator) if held == s.accumulator else x[index]

        return zero_outside(held, befores, size, padded, where, read)

    last = s.data_format == CHANNELS_LAST
    shape = (blocks, variant.threads, *extents, at_once, variant.lanes, s.group_channels)
    return te.compute(shape, at, name="window")


def declare_packing(spec: CanonicalSpec, variant: WindowVariant, weights: Weights) -> tuple[te.Tensor, te.Tensor]:
    """Packed kernel and bias in TE, with zeros where there is no filter or channel.

    Returns:
        Kernel (kd, vectors of a group's channels, kh, kw, filters, channels of a vector).
        Bias (filters,).
    """
    vector = _weights_at_once(spec)
    kernel = te.compute(
        _kernel_shape(spec),
        lambda d, c, h, w, filter_, lane: weights.kernel((d, h, w), c * vector + lane, filter_),
        name=PACKED_KERNEL,
    )
    return kernel, bias_in_blocks(weights, spec.filters, (spec.filters,))


def _kernel_shape(s: CanonicalSpec) -> tuple[int, ...]:
    depth, height, width = s.kernel
    vector = _weights_at_once(s)
    return (depth, s.group_channels // vector, height, width, s.filters, vector)


def error_bound(spec: CanonicalSpec, variant: WindowVariant) -> float:
    """The relative error (2-norm) to expect of data and weights without structure."""
    return error_of_sums(spec, spec.group_channels * math.prod(spec.kernel), on_gpu=True)
