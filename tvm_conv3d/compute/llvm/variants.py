"""The variants of CPUs' algorithms: what changes a declaration. Plans and records hold them, so no TVM is needed here.

A type says of its algorithm whether it is exact: whether it sums the products of the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm_conv3d.spec import Triple


@dataclass(frozen=True)
class WinogradVariant:
    """What a Winograd convolution is cut into; one TE declaration each.

    Attributes:
        modes: of depth, height, width, a letter each: "p", "s", "f" or "d".
        tile: output positions of a tile along each axis; 1 along axes without a transform.
        block: tiles of a task along each axis.
        lanes: channels, and filters, in one vector register.
        vectors: vectors of filters in the product's register tile.
        columns: tiles in the product's register tile; divides the tiles of a task.
        stream: the result is stored past the caches.
        staged: each stage is done for the whole input before the next begins: the weights of a frequency are read once,
            and the transformed input and the products go through memory.
        interleaved: groups that share vectors, lane by lane (:mod:`tvm_conv3d.compute.shared.filter_packing`).
    """

    exact: ClassVar[bool] = False

    modes: str
    tile: Triple
    block: Triple
    lanes: int
    vectors: int
    columns: int
    stream: bool = False
    staged: bool = False
    interleaved: int = 1


@dataclass(frozen=True)
class WinogradRowsVariant:
    """What a Winograd convolution along rows is cut into; one TE declaration each.

    Attributes:
        tile: output positions of a tile, along the width.
        block: output depths, output rows and tiles of a row in a task.
        lanes: filters in one vector register.
        rows, columns: output rows, and tiles of a row, in the product's register tile; they divide those of a task.
        parallel_blocks: blocks of filters are tasks of their own.
        stream: the result is stored past the caches.
    """

    exact: ClassVar[bool] = False

    tile: int
    block: Triple
    lanes: int
    rows: int
    columns: int
    parallel_blocks: bool = False
    stream: bool = False


@dataclass(frozen=True)
class PlanesVariant:
    """What the loops of a convolution on planes are cut into; one TE declaration each.

    Attributes:
        lanes: columns in one vector register.
        vectors: vector registers of a row in a tile.
        rows: rows of a tile.
        filters: filters of a tile.
        gather: whether the rows are copied; else the input is read as it is, where
            :func:`tvm_conv3d.compute.llvm.planes.needs_gather` says that this will do.
        filters_first: a task computes all its positions of some filters, then of the next; else of one tile of
            positions all filters.
        stream: the result is stored past the caches.
    """

    exact: ClassVar[bool] = True

    lanes: int
    vectors: int
    rows: int
    filters: int
    gather: bool = True
    filters_first: bool = False
    stream: bool = False


@dataclass(frozen=True)
class DepthwiseVariant:
    """What the loops of a depthwise convolution are cut into.

    Attributes:
        lanes: elements of a row in one vector register.
        rows: rows of a register tile, one vector wide.
        vectors: of a row, in one task; where columns are strided, whole positions or a whole row.
        stream: the result is stored past the caches.
    """

    exact: ClassVar[bool] = True

    lanes: int
    rows: int
    vectors: int
    stream: bool = False


@dataclass(frozen=True)
class GroupedVariant:
    """What the loops of a grouped convolution are cut into.

    Attributes:
        lanes: filters in one vector register, of any number of groups.
        rows, columns: output positions of a register tile.
        parallel_blocks: blocks of filters are tasks of their own.
        shuffled: a vector is copied once, and its channels change lanes within their groups in registers.
        stream: the result is stored past the caches.
    """

    exact: ClassVar[bool] = True

    lanes: int
    rows: int
    columns: int
    parallel_blocks: bool = False
    stream: bool = False
    shuffled: bool = False


@dataclass(frozen=True)
class DirectVariant:
    """What the loops of a direct convolution are cut into; one TE declaration each.

    Attributes:
        lanes: filters in one vector register.
        vectors: vector registers of filters in a tile.
        rows, columns: output positions of a tile.
        gather: where the padded copy is made: "task" (each task its own part), "root" (all of it, first) or "none"
            (the input is read as it is: it must have no pads, and tiles must divide the output).
        order: which loop encloses which: "filters_spatial", "spatial_filters", "filters_parallel", where blocks of
            filters are tasks of their own, or "strips": as "spatial_filters", with the results of some positions put
            together in L1 and copied to the output in one run (in channels_last only).
        unroll_taps: the taps of a row are unrolled beside the tile (pays when channels are few).
        stream: the result is stored past the caches.
        interleaved: groups that share vectors, lane by lane, all their filters in one tile
            (:mod:`tvm_conv3d.compute.shared.filter_packing`).
    """

    exact: ClassVar[bool] = True

    lanes: int
    vectors: int
    rows: int
    columns: int
    gather: str = "task"
    order: str = "filters_spatial"
    unroll_taps: bool = False
    stream: bool = False
    interleaved: int = 1


@dataclass(frozen=True)
class WeightGradientVariant:
    """What the loops of a gradient of weights are cut into; one TE declaration each.

    Attributes:
        lanes: filters in one vector register.
        vectors: vector registers of filters in a tile.
        channels: channels of a tile.
        taps: which taps are in a tile together: "one", those of a "row", or those of a "plane" of height and width.
        box: output positions along depth, height and width that are summed at once; they divide the output.
        chunks: sums of boxes that are made apart, so that threads share the positions; it divides the boxes.
        copy_input, copy_gradient: whether tasks copy what they read; without, it is read as it lies.
        repeated: vectors are of filters of several groups; the copy of the input holds, lane by lane, the channel of
            each filter's group.
    """

    exact: ClassVar[bool] = True

    lanes: int
    vectors: int
    channels: int
    taps: str
    box: Triple
    chunks: int = 1
    copy_input: bool = True
    copy_gradient: bool = True
    repeated: bool = False


#: The variants' types by their algorithms' names, as in plans and records.
BY_ALGORITHM: Mapping[str, type[Any]] = {
    "winograd": WinogradVariant,
    "winograd_rows": WinogradRowsVariant,
    "planes": PlanesVariant,
    "depthwise": DepthwiseVariant,
    "grouped": GroupedVariant,
    "direct": DirectVariant,
    "weight_gradient": WeightGradientVariant,
}
