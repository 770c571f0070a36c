"""The default register tile and task: a small cost model, used where nothing was tuned.

One step of the reduction (one channel of one tap) of a tile of `cells` output positions by `vectors` vectors of filters
takes the vector units

    step = max(share * max(cells * vectors, LATENCY), (cells + vectors) / LOADS)

cycles, that is, one a multiply-add (a share of it on half a vector, where CPUs split whole ones), at least as many
independent sums as an addition has cycles of latency, and what the load ports take. Times the number of tiles, tails
included, and the cost of tiles of so many vectors, this decides: most of what can be lost is lost in tails of rows,
columns or filters. Tiles of one row are cheaper by the taps that read only padding, as those are skipped. Tiles whose
positions share a set of L1 cost more.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs.table import costs_of
from tvm_conv3d.target.cpu import CpuTraits

#: Cycles of a multiply-add, and loads a cycle: of all CPUs with AVX2, nearly.
LATENCY, LOADS = 8, 2

#: Vectors of filters that a register tile may have.
VECTORS = (1, 2, 3, 4)

#: Interleaved groups, where these have several channels, up to which LLVM copies in vectors.
_MAX_INTERLEAVED = 8

#: Bytes from one line to the next that shares its set of L1: of 32 KiB in 8 ways as of 48 KiB in 12.
L1_PERIOD = 4096

#: Lanes of the narrowest vectors.
_MIN_LANES = 4

#: Padded filters in half vectors, of those in whole ones, up to which halves are worth it.
_SHARE_OF_HALVES = 0.85

#: Tasks a thread should get, so that one slow thread does not decide.
TASKS_PER_THREAD = 4


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `columns` output positions by `vectors` of `lanes` filters of `interleaved` groups."""

    rows: int
    columns: int
    vectors: int
    lanes: int
    interleaved: int = 1


@dataclass(frozen=True)
class Sharing:
    """How groups share vectors: the filters of `interleaved` groups fill `vectors` of `lanes`."""

    interleaved: int
    vectors: int
    lanes: int

    def cycles(self, spec: CanonicalSpec, traits: CpuTraits) -> float:
        """Cycles of the multiply-adds of one channel of one tap for an output position, all filters."""
        cost = costs_of(traits, "direct")[product_of(self.vectors, shared=True)]
        return spec.groups // self.interleaved * self.vectors * cost * relative_vector_cost(traits, spec, self.lanes)


def best_tile(
    spec: CanonicalSpec, traits: CpuTraits, filters: int, unrolled_taps: int = 1, sharing: Sharing | None = None
) -> Tile:
    """The cheapest register tile of `spec` by the cost model above; see :func:`good_tiles`."""
    return good_tiles(spec, traits, filters, unrolled_taps, sharing, count=1)[0]


def good_tiles(
    spec: CanonicalSpec,
    traits: CpuTraits,
    filters: int,
    unrolled_taps: int = 1,
    sharing: Sharing | None = None,
    *,
    count: int,
) -> list[Tile]:
    """The cheapest register tiles of `spec` by the cost model above, the best first.

    Args:
        spec: the problem.
        traits: the CPU.
        filters: filters that share one input channel: those of a group.
        unrolled_taps: taps of a row that are unrolled beside the tile; then their inputs take registers, too.
        sharing: how groups share vectors, if they do.
        count: how many, at most.
    """
    useful, widths, interleaved = useful_lanes(traits, spec.accumulator, filters), list(VECTORS), 1
    if sharing is not None:
        useful, widths, interleaved = [sharing.lanes], [sharing.vectors], sharing.interleaved
        filters = sharing.vectors * sharing.lanes
    _, height, width = spec.out_size
    # one register holds the broadcast input value, `vectors` hold the weights
    sums = traits.registers - 1 if unrolled_taps == 1 else traits.registers // 2 - 2
    most_rows = 4 if unrolled_taps == 1 else 1
    candidates = [
        Tile(rows, columns, vectors, lanes, interleaved)
        for rows, vectors, lanes in itertools.product(range(1, most_rows + 1), widths, useful)
        for columns in range(1, traits.registers)
        if (rows * columns + (unrolled_taps == 1)) * vectors <= sums and rows <= height and columns <= max(width, 1)
    ]
    row_share = live_share(spec, 1)
    costs = costs_of(traits, "direct")

    def cost(tile: Tile) -> tuple[float, int, int]:
        cells = tile.rows * tile.columns
        conflict = costs["conflict"] if overfills_a_set(spec, traits, tile.rows, tile.columns) else 0.0
        step = step_cycles(cells, tile.vectors, tile.lanes / useful[0])
        tiles = -(-height // tile.rows) * -(-width // tile.columns) * -(-filters // (tile.vectors * tile.lanes))
        # the cost last: what takes as long must not differ by rounding
        steps = tiles * step * (row_share if tile.rows == 1 else 1)
        return steps * (costs[product_of(tile.vectors)] + conflict), -cells * tile.vectors, tile.rows

    return heapq.nsmallest(count, candidates, key=cost)


def product_of(vectors: int, shared: bool = False) -> str:
    """The amount that steps of tiles of so many vectors count as.

    A single vector of interleaved groups has one of its own: inputs are loaded apart from the multiplication.
    """
    return "product_shared" if shared and vectors == 1 else f"product_{vectors}"


def overfills_a_set(spec: CanonicalSpec, traits: CpuTraits, rows: int, columns: int) -> bool:
    """Whether a tile's positions share more lines of a set of L1 than it has: 1024 channels at once in 14 columns."""
    # columns from one whose input lies in a set to the next
    apart = L1_PERIOD // math.gcd(spec.strides[2] * spec.channels * np.dtype(spec.accumulator).itemsize, L1_PERIOD)
    return rows * -(-columns // apart) > traits.l1 // L1_PERIOD


def step_cycles(cells: int, vectors: int, share: float) -> float:
    """Cycles that the vector units take for a step of the reduction, by the formula above."""
    return max(share * max(cells * vectors, LATENCY), (cells + vectors) / LOADS)


def live_share(spec: CanonicalSpec, axis: int) -> float:
    """The share of an axis's taps that lie on the input, over all output positions; the others read padding."""
    taps = spec.kernel[axis]
    return sum(spec.live_windows(axis, tap) for tap in range(taps)) / (spec.out_size[axis] * taps)


def fitting_lanes(traits: CpuTraits, dtype: str, filters: int) -> int:
    """Lanes of a vector: the register's, or the next power of two when the filters do not fill it.

    At least four: a narrower operation takes as long, and a result that is stored through the stack element by element
    takes longer (a single filter of 1x1x1: five times).
    """
    lanes = traits.lanes(dtype)
    while lanes > _MIN_LANES and lanes // 2 >= filters:
        lanes //= 2
    return lanes


def useful_lanes(traits: CpuTraits, dtype: str, filters: int) -> list[int]:
    """:func:`fitting_lanes`, then half of them where that saves much: 24 filters are three halves instead of four."""
    lanes = fitting_lanes(traits, dtype, filters)
    half = lanes // 2
    saves = -(-filters // half) * half <= _SHARE_OF_HALVES * -(-filters // lanes) * lanes
    return [lanes, half] if traits.half_width_vector_units and saves and lanes == traits.lanes(dtype) else [lanes]


def task_box(
    spec: CanonicalSpec, traits: CpuTraits, tile: tuple[int, int], copy_bytes_per_cell: int
) -> tuple[int, int, int]:
    """Depth, row tiles and column tiles of one task, for register tiles of `tile` (rows, columns) output positions.

    Among the boxes that leave enough tasks for all threads and keep the copied input in half of L2, that which leaves
    the fewest threads idle at the end, then that which copies the fewest input positions for each output position; of
    equals the longest rows.
    """
    whole = tiles_of(spec, tile)
    step = (1, *tile)

    def copied(box: tuple[int, int, int]) -> int:
        return math.prod(
            (inner * cell - 1) * stride + window
            for inner, cell, stride, window in zip(box, step, spec.strides, spec.window, strict=True)
        )

    def fits(box: tuple[int, int, int]) -> bool:
        enough = tasks(spec, tile, box) >= TASKS_PER_THREAD * traits.cores
        return enough and copied(box) * copy_bytes_per_cell <= traits.l2 // 2

    def cost(box: tuple[int, int, int]) -> tuple[int, float, int, int]:
        uneven = unevenness(tasks(spec, tile, box), traits)
        return uneven, round(copied(box) / math.prod(box), 6), -box[2], -box[1]

    depth, rows, columns = map(divisors, whole)
    boxes = [box for box in itertools.product(depth, rows, columns) if fits(box)]
    return min(boxes, key=cost, default=(1, 1, 1))


def unevenness(count: int, traits: CpuTraits) -> int:
    """How much longer than the others the busiest core works, of so many equal tasks, in steps of a twentieth."""
    return round(20 * (busiest_share(count, traits) * traits.cores - 1))


def busiest_share(count: int, traits: CpuTraits) -> float:
    """The share of so many equal tasks that the busiest core has."""
    return -(-count // traits.cores) / count


def tiles_of(spec: CanonicalSpec, tile: tuple[int, int]) -> tuple[int, int, int]:
    """Output depth, row tiles and column tiles of the whole problem."""
    depth, height, width = spec.out_size
    return depth, -(-height // tile[0]), -(-width // tile[1])


def tasks(spec: CanonicalSpec, tile: tuple[int, int], box: tuple[int, int, int]) -> int:
    """Number of tasks of `box` (depth, row tiles, column tiles)."""
    return spec.batch * math.prod(size // inner for size, inner in zip(tiles_of(spec, tile), box, strict=True))


def sharings(spec: CanonicalSpec, traits: CpuTraits) -> list[Sharing]:
    """The ways of sharing vectors among groups of few filters, the cheapest first.

    None for groups of one filter, as then no element is loaded for more than one lane: :mod:`grouped` is as good; none
    for phases, which differ in their taps.
    """
    whole = traits.lanes(spec.accumulator)
    if spec.group_filters == 1 or spec.phased:
        return []
    found = []
    most = whole if spec.group_channels == 1 else _MAX_INTERLEAVED
    for interleaved in (1 << bits for bits in range(1, most.bit_length())):
        lanes = fitting_lanes(traits, spec.accumulator, spec.group_filters * interleaved)
        for width in (lanes, lanes // 2):
            vectors = -(-spec.group_filters * interleaved // width)
            divides = spec.groups % interleaved == width % interleaved == 0
            if divides and width >= _MIN_LANES and vectors in VECTORS:
                found.append(Sharing(interleaved, vectors, width))
    return sorted(found, key=lambda sharing: (sharing.cycles(spec, traits), -sharing.lanes))


def worthwhile_sharing(spec: CanonicalSpec, traits: CpuTraits) -> Sharing | None:
    """The cheapest sharing, or None where groups had better have vectors of their own."""
    found = sharings(spec, traits)
    if not found:
        return None
    lanes = fitting_lanes(traits, spec.accumulator, spec.group_filters)
    costs = costs_of(traits, "direct")
    apart = spec.groups * -(-spec.group_filters // lanes) * relative_vector_cost(traits, spec, lanes)
    # as cheap as tiles can be: groups with vectors of their own have more of them
    apart *= costs["product_2"]
    saved = math.prod(spec.kernel) * spec.group_channels * (apart - found[0].cycles(spec, traits))
    copied = costs["interleave"] * spec.channels * math.prod(spec.strides)
    return found[0] if saved > copied else None


def relative_vector_cost(traits: CpuTraits, spec: CanonicalSpec, lanes: int) -> float:
    """What an operation on `lanes` costs: some CPUs do two of half a vector, or less, at once."""
    return 0.5 if traits.half_width_vector_units and lanes < traits.lanes(spec.accumulator) else 1.0
