"""What a Winograd variant costs: a model that is linear in what the variant does.

Amounts, of which :mod:`table` has the cost:

    product_N        multiply-adds of vectors in the frequencies' matrix products, in register tiles of N vectors
    transform        multiply-adds of vectors in the transforms, forth and back
    copy             vectors of the gathered input and of the stored output
    transpose        vectors of either in channels_first
    row              rows that are started there: each of a channel lies in a page of its own
    element          scalar copies of gathered elements: chunks of interleaved groups fill no vectors
    piece            gathered elements that are copied in channel chunks, as channels fill no vectors
    own_l2, own_l3,  bytes of a task's private data, written and read once, where L2 holds them, where half of L3
    own_memory       holds those of all cores, and where it does not
    weights_l3       bytes of weights that are read anew, for each task, from L3
    waiting          cycles for weights from memory, or from an L3 that can't keep up, beyond those of the products
                     that are done meanwhile
    l3               bytes of input and output, where L3 holds both
    memory           cycles for them where it does not, beyond those of the products that are done meanwhile
    task             tasks
"""

from __future__ import annotations

import functools
import math

from tvm_conv3d.compute.llvm.winograd import WinogradVariant, side_by_side
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import transforms
from tvm_conv3d.compute.shared.filter_packing import FilterPacking
from tvm_conv3d.compute.shared.winograd_axes import axes_of
from tvm_conv3d.schedules.llvm.costs.memory import (
    SHARE_OF_L3,
    bytes_moved,
    moved,
    waiting_for_l3,
    waiting_for_weights,
)
from tvm_conv3d.schedules.llvm.costs.table import costs_of, total
from tvm_conv3d.schedules.llvm.costs.tile_rule import product_of, relative_vector_cost, step_cycles
from tvm_conv3d.spec import CHANNELS_LAST, Triple
from tvm_conv3d.target.cpu import CpuTraits


def amounts(s: CanonicalSpec, traits: CpuTraits, variant: WinogradVariant) -> dict[str, float]:
    """How much of each a core does."""
    return Tasks(s, traits, variant).amounts(variant.block, variant.columns)


def packed_bytes(s: CanonicalSpec, variant: WinogradVariant) -> float:
    """Bytes of the transformed weights."""
    axes, blocks = axes_of(s, variant.modes), FilterPacking.of(s, variant)
    filters = blocks.sharing * blocks.blocks * variant.vectors * variant.lanes
    return 4.0 * math.prod(axes.cells(variant.tile)) * (axes.channels // s.groups) * filters


class Tasks:
    """What tasks of any size cost: some thousand are compared, so that what they share is worked out once.

    Args:
        s: the problem.
        traits: the CPU.
        variant: its block and columns do not matter.
    """

    def __init__(self, s: CanonicalSpec, traits: CpuTraits, variant: WinogradVariant) -> None:
        axes = axes_of(s, variant.modes)
        blocks = FilterPacking.of(s, variant)
        width = variant.vectors * variant.lanes
        self._s, self._traits, self._tile = s, traits, variant.tile
        self._vectors, self._lanes, self._interleaved = variant.vectors, variant.lanes, variant.interleaved
        self._axes, self._cells = axes, axes.cells(variant.tile)
        self._part = axes.part_size(s.out_size)
        self._filters = blocks.sharing * blocks.blocks * width
        self._channels = -(-axes.channels // variant.lanes) * variant.lanes
        self._share = _share(s, traits, variant.lanes)
        self._frequencies = math.prod(self._cells)
        self._products = self._frequencies * (axes.channels // s.groups) * (self._filters // width)
        self._weights = packed_bytes(s, variant)
        self._own = 4.0 * self._frequencies * (self._channels + self._filters)
        self._parts = s.batch * math.prod(axes.parts)
        self._in_pieces = bool(side_by_side(s, variant) % variant.lanes)
        self._entries = [_entries(size) for size in zip(variant.tile, axes.taps, axes.strides, strict=True)]
        self._bytes = bytes_moved(s)
        self._costs = costs_of(traits, "winograd")

    def cycles(self, block: Triple, columns: int) -> float:
        """Estimated cycles on each core, for tasks of `block` tiles in register tiles of `columns`."""
        return total(self._costs, self.amounts(block, columns))

    def amounts(self, block: Triple, columns: int) -> dict[str, float]:
        """How much of each a core does."""
        traits, tiles = self._traits, math.prod(block)
        groups = [-(-o // (m * b)) for o, m, b in zip(self._part, self._tile, block, strict=True)]
        rounds = -(-self._parts * math.prod(groups) // traits.cores)
        step = step_cycles(columns, self._vectors, self._share) / columns
        own = self._own * tiles
        of_task = {
            product_of(self._vectors): self._products * tiles * step,
            # loops over a row of tiles cost as much to start as half a tile
            "transform": self._transform_steps(block) * self._share * (1 + 0.5 / block[2]),
            **self._copied(block, tiles),
            _place_of_own(traits, own): own,
            "task": 1.0,
        }
        if self._weights > SHARE_OF_L3 * traits.l3:
            # register tiles after the first find the weights of a frequency in the core's own caches
            of_task["waiting"] = waiting_for_weights(self._products * step * columns, self._weights)
        elif self._weights > traits.l2 / 2:
            of_task["weights_l3"] = self._weights
            if traits.vector_bits == 512 and not traits.half_width_vector_units:
                # two multiply-adds a cycle, twice as many as the costs are of: L3 may not keep up with narrow tiles
                of_task["waiting"] = waiting_for_l3(self._products * step * columns / 2, self._weights)
        product = rounds * of_task[product_of(self._vectors)]
        return {**{name: rounds * amount for name, amount in of_task.items()}, **moved(self._bytes, traits, product)}

    def _copied(self, block: Triple, tiles: int) -> dict[str, float]:
        """What a task copies, gathering its input and storing its output."""
        s, share, lanes = self._s, self._share, self._lanes
        cells = self._axes.cells([b * m for b, m in zip(block, self._tile, strict=True)])
        gathered = math.prod(cells) * self._channels
        stored = tiles * math.prod(self._tile) * self._filters
        if s.data_format != CHANNELS_LAST:
            # transposed on the way, each row of a channel by itself
            moved = {"transpose": (1.5 * gathered + stored) * share / lanes}
            moved["row"] = (gathered + stored) * share / lanes / (block[2] * self._tile[2])
            return {**moved, "element": gathered} if self._interleaved > 1 else moved
        if self._in_pieces:
            return {"copy": stored * share / lanes, "piece" if s.groups == 1 else "element": gathered}
        return {"copy": (2 * gathered + stored) * share / lanes}

    def _transform_steps(self, block: Triple) -> float:
        """Vector multiply-adds of a task's transforms."""
        steps = 0.0
        # a row of tiles is transformed by itself: rows that two of them share are transformed twice
        cells = [b * n for b, n in zip(block, self._cells, strict=True)]
        for stage, vectors in enumerate((self._channels // self._lanes, self._filters // self._lanes)):
            for axis, b in enumerate(block):
                if self._cells[axis] > 1:
                    rest = math.prod(cells) // cells[axis]
                    steps += rest * b * self._entries[axis][stage] * vectors
                    if stage:
                        cells[axis] = b * self._tile[axis]
        return steps


def _place_of_own(traits: CpuTraits, own: float) -> str:
    """Which cache holds so many bytes of a task's private data."""
    if own <= traits.l2:
        return "own_l2"
    return "own_l3" if own * traits.cores <= SHARE_OF_L3 * traits.l3 else "own_memory"


def _share(s: CanonicalSpec, traits: CpuTraits, lanes: int) -> float:
    """What an operation on `lanes` costs; of groups that share vectors, narrow ones are no better than whole ones."""
    return relative_vector_cost(traits, s, lanes) if s.groups == 1 else 1.0


@functools.cache
def _entries(size: tuple[int, int, int]) -> tuple[int, int]:
    """Elements that are not zero in the matrices that transform inputs and outputs."""
    output, _, data = transforms(*size)
    forth, back = (sum(number != 0 for row in matrix for number in row) for matrix in (data, output))
    return forth, back
