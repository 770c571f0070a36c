"""How a Winograd convolution on a GPU is cut: what its kernels compute, keep, and move at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_conv3d.compute.cuda.variants import WinogradGemmVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.winograd_axes import Axes, axes_of, triple
from tvm_conv3d.spec import CHANNELS_LAST, Triple

#: Neighbouring elements that are read and written at once.
LANES = 4

#: Threads of a block, at most, and bytes of shared memory for one channel or filter, where it moves whole planes.
_PLANE_THREADS, _PLANE_BYTES = 256, 1 << 14

#: Of shared memory, of words.
BANKS = 32


@dataclass(frozen=True)
class Extents:
    """Sizes of one Winograd convolution.

    Attributes:
        axes: of the spec with its modes.
        frequencies: per axis.
        taps: along depth, that the product sums.
        tiles: of the output, per axis of a part.
        slice: tiles of height and width as they are counted: whole vectors.
        rows: slices whose data is kept, along depth.
        planes: samples times parts.
        cell_blocks, filter_blocks, steps: number of the product's tiles along each axis.
    """

    axes: Axes
    frequencies: Triple
    taps: int
    tiles: Triple
    slice: int
    rows: int
    planes: int
    cell_blocks: int
    filter_blocks: int
    steps: int

    @property
    def data_shape(self) -> tuple[int, int]:
        """Rows of all planes, and tiles of a row, whose data is kept."""
        return self.planes * self.rows, self.slice

    @property
    def vectors(self) -> int:
        """Vectors of tiles of the output."""
        return self.planes * self.tiles[0] * self.slice // LANES


def extents_of(spec: CanonicalSpec, variant: WinogradGemmVariant) -> Extents:
    """How `variant` cuts `spec`.

    Raises:
        ValueError: an axis other than depth has several taps and no transform, or a dilated axis no whole parts.
    """
    axes = axes_of(spec, variant.modes)
    if any(o % parts for o, parts in zip(spec.out_size, axes.parts, strict=True)):
        raise ValueError(f"Dilated axes need an output of whole parts. Received: {variant} for {spec.key()}")
    untransformed = [t if m == 1 else 1 for m, t in zip(variant.tile, axes.taps, strict=True)]
    if max(untransformed[1:]) > 1:
        raise ValueError(f"Only depth may have taps and no transform. Received: {variant} for {spec.key()}")
    frequencies = triple([m + t - 1 if m > 1 else 1 for m, t in zip(variant.tile, axes.taps, strict=True)])
    tiles = triple([-(-(o // p) // m) for o, p, m in zip(spec.out_size, axes.parts, variant.tile, strict=True)])
    whole = -(-tiles[1] * tiles[2] // LANES) * LANES
    planes = spec.batch * math.prod(axes.parts)
    return Extents(
        axes,
        frequencies,
        untransformed[0],
        tiles,
        whole,
        tiles[0] + untransformed[0] - 1,
        planes,
        -(-planes * tiles[0] * whole // variant.cells),
        -(-spec.filters // variant.filters),
        -(-axes.channels // variant.step),
    )


def along_width(spec: CanonicalSpec, variant: WinogradGemmVariant, size: int) -> int:
    """Neighbouring positions of rows of `size` that a thread moves at once: rows and tiles have whole vectors of them.

    One in channels_last, and where a tile's neighbours lie apart.
    """
    axes = axes_of(spec, variant.modes)
    apart = axes.step[2] > 1 or axes.parts[2] > 1 or math.prod(axes.phases) > 1
    if spec.data_format == CHANNELS_LAST or apart:
        return 1
    return math.gcd(LANES, variant.tile[2], size)


def by_planes(spec: CanonicalSpec, variant: WinogradGemmVariant) -> bool:
    """Whether blocks move whole planes of tiles by shared memory: in channels_first, where rows have no vectors."""
    e = extents_of(spec, variant)
    beside = variant.tile[2] == e.axes.parts[2] == 1
    if spec.data_format == CHANNELS_LAST or math.prod(e.axes.phases) > 1 or beside:
        return False
    if min(along_width(spec, variant, size[2]) for size in (spec.size, spec.out_size)) == LANES:
        return False
    fits = max(plane_bytes(spec, variant, 1)) <= _PLANE_BYTES
    return fits and e.axes.parts[2] * e.slice <= _PLANE_THREADS


def tiles_of_slab(variant: WinogradGemmVariant, e: Extents) -> tuple[int, int]:
    """Tiles along height and width that hold the windows of a plane; those that fill up a vector lie below the last."""
    (_, high, wide), (_, down, across) = variant.tile, e.frequencies
    return -(-e.slice // e.tiles[2]) + (down - 1) // high, e.tiles[2] + (across - 1) // wide


def plane_bytes(spec: CanonicalSpec, variant: WinogradGemmVariant, rows: int) -> tuple[int, int]:
    """Bytes of shared memory for rows of tiles of one channel, and of one filter, where blocks move whole planes.

    At most: the rows and the columns of a tile's places may be padded to begin in any bank.
    """
    e, (deep, high, wide) = extents_of(spec, variant), variant.tile
    found = []
    for depth, (down, across) in ((e.frequencies[0], tiles_of_slab(variant, e)), (deep, e.tiles[1:])):
        of_column = rows * down * across + BANKS - 1
        found.append(4 * e.axes.parts[2] * depth * high * (wide * of_column + BANKS - 1))
    return found[0], found[1]
