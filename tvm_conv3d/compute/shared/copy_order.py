"""The loops of a copy into C order: its axes, outermost first, and tiles along two of them."""

from __future__ import annotations

import math
from typing import NamedTuple

#: Axes that the loops run over.
AXES = 5

#: The functions: elements straight over, and through a stage.
STRAIGHT, STAGED = "straight", "staged"

#: Rows and columns of a tile that goes through the stage, at most.
TILE = 64

#: Bytes between two elements in the source, at most, for several of a row of the target to share a cache line.
_NEAR = 16

#: Axes this short are not worth a loop of their own.
_SHORT = 8

#: Elements that a task copies straight, and how many of them in a row.
_TASK, _ROW = 1 << 14, 1 << 12


class Axis(NamedTuple):
    """An axis of a copy: its extent, and the elements between neighbours in the source and in the target."""

    extent: int
    read: int
    write: int


def plan(shape: tuple[int, ...], strides: list[int], itemsize: int) -> tuple[str, list[Axis], tuple[int, int]]:
    """Which function of `compute.strided_copy` copies an array, its five axes in order, and rows and columns of a tile.

    Args:
        shape, strides: of the source, in elements.
        itemsize: bytes of its elements.
    """
    axes = merged(shape, strides)
    last = axes.pop()
    # where the target's rows are not the source's, the axis along which the source lies side by side
    fast = min(axes, key=lambda axis: abs(axis.read) or math.inf, default=last)
    if abs(last.read) <= abs(fast.read) or fast.read == 0:
        fast = axes[-1] if axes else Axis(1, 0, 0)
        staged = False
    else:
        staged = abs(last.read) * itemsize > _NEAR and min(fast.extent, last.extent) >= _SHORT
    if fast in axes:
        axes.remove(fast)
    rows, columns = (last, fast) if last.extent < _SHORT <= fast.extent else (fast, last)
    width = min(columns.extent, _ROW)
    tile = (TILE, TILE) if staged else (max(1, min(rows.extent, _TASK // width)), width)
    others = [Axis(1, 0, 0)] * (AXES - 2 - len(axes)) + axes
    return (STAGED if staged else STRAIGHT), [*others, rows, columns], tile


def merged(shape: tuple[int, ...], strides: list[int]) -> list[Axis]:
    """The axes of a copy into C order, outermost first: none of extent 1, those that one loop runs over as one."""
    axes: list[Axis] = []
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if axes and stride == axes[0].read * axes[0].extent:
            axes[0] = axes[0]._replace(extent=axes[0].extent * extent)
        elif extent != 1:
            axes.insert(0, Axis(extent, stride, step))
        step *= extent
    return axes
