"""The variants of GPUs' algorithms, as :mod:`tvm_conv3d.compute.llvm.variants` has those of CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm_conv3d.spec import Triple


@dataclass(frozen=True)
class WindowVariant:
    """What the output is cut into; one TE declaration each.

    Attributes:
        rows, columns: output positions of one thread.
        threads: of a block.
        lanes: neighbouring filters of one thread, up to 4; above 1 in channels_last, with a channel and a filter a
            group.
        planes: output positions of one thread along the depth; above 1 with a single row.
    """

    exact: ClassVar[bool] = True

    rows: int
    columns: int
    threads: int = 128
    lanes: int = 1
    planes: int = 1


@dataclass(frozen=True)
class WinogradGemmVariant:
    """What a Winograd convolution is cut into; one TE declaration each.

    Attributes:
        modes: of depth, height, width, a letter each (:mod:`tvm_conv3d.compute.shared.winograd_axes`).
        tile: output positions of a tile along each axis; 1 along axes without a transform.
        cells, filters: tiles of the output and filters of a tile of the product, which one block of threads computes.
        step: channels that are gathered at a time.
        threads_cells, threads_filters: threads of a block along each side of the product's tile.
        stages: steps of the product that are on their way at once, by asynchronous copies: from sm_80 on.
    """

    exact: ClassVar[bool] = False

    modes: str
    tile: Triple
    cells: int
    filters: int
    step: int
    threads_cells: int
    threads_filters: int
    stages: int = 1


@dataclass(frozen=True)
class TensorVariant:
    """What the product is cut into; one TE declaration each.

    Attributes:
        cells, filters: output positions and filters of a tile, which one block of threads computes.
        step: terms of the reduction that are gathered at a time; a multiple of 16.
        warps_cells, warps_filters: warps of a block along each side of the tile; each has a multiple of 16 there.
        vector: neighbouring channels that are read at once; divides the channels of a group and `step`.
        store: neighbouring output elements that one thread finishes.
        flat: taps and channels are one axis of the reduction.
        parts: that the reduction is cut into.
        turned: of channels_first, whether a kernel before brings the input into channels_last, so that the threads of
            the product read neighbouring channels.
        stages: steps that are on their way at once: while one is multiplied, the next ones are copied to shared memory.
        warps_terms: warps that share a part of the tile, each with its share of every step's terms, a multiple of 16.
    """

    exact: ClassVar[bool] = True

    cells: int
    filters: int
    step: int
    warps_cells: int
    warps_filters: int
    vector: int = 1
    store: int = 1
    flat: bool = False
    parts: int = 1
    turned: bool = False
    stages: int = 1
    warps_terms: int = 1

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.warps_cells * self.warps_filters * self.warps_terms


@dataclass(frozen=True)
class GemmVariant:
    """What the product is cut into; one TE declaration each.

    Attributes:
        cells, filters: output positions and filters of a tile, which one block of threads computes.
        step: terms of the reduction that are gathered at a time.
        threads_cells, threads_filters: threads of a block along each side of the tile.
        vector: neighbouring channels that are read at once; divides the channels of a group and `step`.
        store: neighbouring output elements that are written at once.
        flat: taps and channels are one axis of the reduction.
        parts: that the reduction is cut into, each of which blocks of their own sum; divides taps times steps.
        stages: steps that are on their way at once, as of :class:`TensorVariant`; copies are of one element each then.
    """

    exact: ClassVar[bool] = True
    turned: ClassVar[bool] = False

    cells: int
    filters: int
    step: int
    threads_cells: int
    threads_filters: int
    vector: int = 1
    store: int = 1
    flat: bool = False
    parts: int = 1
    stages: int = 1


@dataclass(frozen=True)
class WeightGradientGemmVariant:
    """What the product is cut into that is the gradient of weights; one TE declaration each.

    Attributes:
        cells: rows of a tile, each the weights of one tap and channel.
        filters: of a tile, which one block of threads computes.
        step: positions of the output that are gathered at a time.
        threads_cells, threads_filters: threads of a block along each side of the tile.
        vector: neighbouring channels that are read at once; divides those of a group and `cells`.
        filter_vector: neighbouring filters of the output's gradient, likewise.
        store: neighbouring weights that are written at once.
        parts: that the positions are cut into, each of which blocks of their own sum.
    """

    exact: ClassVar[bool] = True

    cells: int
    filters: int
    step: int
    threads_cells: int
    threads_filters: int
    vector: int = 1
    filter_vector: int = 1
    store: int = 1
    parts: int = 1


@dataclass(frozen=True)
class WeightGradientWindowVariant:
    """What the gradient of weights is cut into where a thread sums a few of them; one TE declaration each.

    Attributes:
        taps: along the width, whose weights a thread sums; divides the kernel's.
        columns: neighbouring output positions that a thread reads at once; above 1 without dilation along the width.
        parts: that the positions are cut into, each summed by threads of its own.
        threads_parts, threads_filters: threads of a block along parts and filters; they divide these.
        store: neighbouring weights that are written at once.
    """

    exact: ClassVar[bool] = True

    taps: int
    columns: int
    parts: int
    threads_parts: int
    threads_filters: int
    store: int = 1


#: The variants' types by their algorithms' names, as in plans and records.
BY_ALGORITHM: Mapping[str, type[Any]] = {
    "window": WindowVariant,
    "winograd_gemm": WinogradGemmVariant,
    "tensor_gemm": TensorVariant,
    "gemm": GemmVariant,
    "weight_gradient_window": WeightGradientWindowVariant,
    "weight_gradient_gemm": WeightGradientGemmVariant,
}
