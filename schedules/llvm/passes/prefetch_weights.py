"""Fetches the weights of Winograd's next matrix product while one is computed.

Panels, what all channels have of a frequency and a block of filters, lie one after the other as they are read. Where
all of them are more than a core's own cache holds, they come from L3 or memory, for each task anew, and the hardware's
prefetcher does not run as far ahead as that takes: 256 channels and filters on 4 x 14 x 14 positions, with 47 MB of
packed weights, take 1.5 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.shared.argument import KERNEL
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import insert_prefetch, marks
from tvm_conv3d.schedules.llvm.passes.lower_to_loops import values_in

#: Annotation of the product's loop over channels.
_PANELS = "tvm_conv3d.fetches_panels_ahead"


def mark(sch: Schedule, task: LoopRV, channel: LoopRV) -> None:
    """Marks the product's loop over channels, inside of the parallel loop `task`."""
    sch.annotate(channel, _PANELS, 1)
    insert_prefetch.give_function(sch, task)


@marks.function_pass("prefetch_weights", _PANELS)
def insert(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Puts the fetches of the next panel into every marked loop: in each step those of the same channel."""
    return insert_prefetch.with_fetches(function, _PANELS, KERNEL, _lines)


def _lines(loop: tirx.For, kernel: Any) -> Iterator[Any]:
    _, height, width, blocks, channels, vectors, lanes = (int(extent) for extent in kernel.shape)
    *_, e, y, x, filters, _, _, channel = values_in(loop)
    panel = ((e * height + y) * width + x) * blocks + filters // vectors
    step = ((panel + 1) * channels + channel) * (vectors * lanes)
    return (step + line for line in range(0, vectors * lanes, insert_prefetch.LINE // int(kernel.dtype.itemsize)))
