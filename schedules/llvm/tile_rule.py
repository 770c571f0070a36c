"""The default register tile and task: a small cost model, used where nothing was tuned.

Cost of one step of the reduction (one channel of one tap), in cycles of the vector unit, for a tile of `cells` output
cells by `vectors` vectors of filters:

    step = max(cells * vectors, LATENCY, (cells + vectors) / LOADS) * (1 + WIDE * max(0, vectors - 3))

that is, one cycle a multiply-add, at least as many independent sums as an addition is deep, and what the load ports
take. What decides is how much of the tile is useful: the product of the three ratios of useful to computed cells and
filters. WIDE was fitted to measured layers (64 to 512 channels, AVX-512): tiles of four vectors lose about a tenth.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.targets import CpuTraits

LATENCY = 8
LOADS = 2
WIDE = 0.1

#: Tasks a thread should get, so that one slow thread does not decide.
TASKS_PER_THREAD = 4


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `columns` output cells by `vectors` of `lanes` filters."""

    rows: int
    columns: int
    vectors: int
    lanes: int


def best_tile(spec: Conv3DSpec, traits: CpuTraits, filters: int, most_vectors: int = 4) -> Tile:
    """The cheapest register tile of `spec` (axes already collapsed) by the cost model above.

    Args:
        spec: the problem.
        traits: the CPU.
        filters: filters that share one input channel: those of a group.
        most_vectors: widest tile to consider.
    """
    lanes = fitting_lanes(traits, spec.accumulator, filters)
    _, height, width = spec.out_size
    # one register holds the broadcast input value, `vectors` hold the weights
    candidates = [
        Tile(rows, columns, vectors, lanes)
        for rows, vectors in itertools.product((1, 2, 3, 4), range(1, most_vectors + 1))
        for columns in range(1, traits.registers)
        if rows * columns * vectors + vectors + 1 <= traits.registers and rows <= height and columns <= max(width, 1)
    ]

    def cost(tile: Tile) -> tuple[float, int, int]:
        cells = tile.rows * tile.columns
        step = max(cells * tile.vectors, LATENCY, (cells + tile.vectors) / LOADS)
        step *= 1 + WIDE * max(0, tile.vectors - 3)
        tiles = -(-height // tile.rows) * -(-width // tile.columns) * -(-filters // (tile.vectors * lanes))
        return (round(tiles * step / 16), -cells * tile.vectors, tile.rows)

    return min(candidates, key=cost)


def fitting_lanes(traits: CpuTraits, dtype: str, filters: int) -> int:
    """Lanes of a vector: the register's, or the next power of two when the filters do not fill it."""
    lanes = traits.lanes(dtype)
    while lanes > 1 and lanes // 2 >= filters:
        lanes //= 2
    return lanes


def task_box(
    spec: Conv3DSpec, traits: CpuTraits, tile: tuple[int, int], copy_bytes_per_cell: int
) -> tuple[int, int, int]:
    """Depth, row tiles and column tiles of one task, for register tiles of `tile` (rows, columns) cells.

    Grows along columns, rows, depth while enough tasks remain for all threads and the copied input stays in half of L2:
    larger boxes copy fewer cells twice.
    """
    whole = tiles_of(spec, tile)
    step = (1, *tile)
    box = [1, 1, 1]

    def fits(candidate: list[int]) -> bool:
        cells = math.prod(
            (inner * cell - 1) * stride + window
            for inner, cell, stride, window in zip(candidate, step, spec.strides, spec.window, strict=True)
        )
        enough = tasks(spec, tile, (candidate[0], candidate[1], candidate[2])) >= TASKS_PER_THREAD * traits.cores
        return enough and cells * copy_bytes_per_cell <= traits.l2 // 2

    for axis in (2, 1, 0):
        for inner in range(2, whole[axis] + 1):
            candidate = [*box[:axis], inner, *box[axis + 1 :]]
            if whole[axis] % inner == 0 and fits(candidate):
                box = candidate
    return box[0], box[1], box[2]


def tiles_of(spec: Conv3DSpec, tile: tuple[int, int]) -> tuple[int, int, int]:
    """Output depth, row tiles and column tiles of the whole problem."""
    depth, height, width = spec.out_size
    return depth, -(-height // tile[0]), -(-width // tile[1])


def tasks(spec: Conv3DSpec, tile: tuple[int, int], box: tuple[int, int, int]) -> int:
    """Number of tasks of `box` (depth, row tiles, column tiles)."""
    return spec.batch * math.prod(size // inner for size, inner in zip(tiles_of(spec, tile), box, strict=True))
