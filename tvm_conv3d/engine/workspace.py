"""Memory that a kernel takes for its intermediates: padded copies, transformed tiles, sums that await their store.

What a loop over tasks allocates is there once for each thread, the rest once for each call. The numbers are those of
the scheduled function before TVM lets buffers share memory, and so an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm import IRModule


@dataclass(frozen=True)
class Workspace:
    """Bytes of a kernel's intermediates.

    Attributes:
        shared: allocated once a call.
        own: allocated by each thread.
    """

    shared: int
    own: int

    def per_thread(self, threads: int) -> int:
        """Bytes a thread, each with its part of what is shared."""
        return self.own + -(-self.shared // threads)

    def to_json(self) -> dict[str, int]:
        """The figures as JSON's types."""
        return {"shared": self.shared, "own": self.own}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Workspace:
        """The inverse of :meth:`to_json`; raises TypeError, ValueError or KeyError where `values` are of none."""
        return cls(int(values["shared"]), int(values["own"]))


#: Of code that allocates nothing.
NO_WORKSPACE = Workspace(0, 0)


def of_small_buffers(module: IRModule) -> Workspace:
    """What a scheduled function takes whose buffers are as small as their use allows."""
    import tvm_ffi
    from tvm import tirx
    from tvm.s_tir import SBlock

    body = module["main"].body

    def allocated(part: Any) -> int:
        found: list[int] = []

        def on_block(block: SBlock) -> None:
            found.extend(map(_bytes, block.alloc_buffers))

        tvm_ffi.structural_walk(part, (SBlock, on_block))
        return sum(found)

    tasks: list[int] = []

    def on_loop(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            tasks.append(allocated(loop.body))

    tvm_ffi.structural_walk(body, (tirx.For, on_loop))
    # one parallel loop after the other: the next takes the memory that the one before gave back
    return Workspace(allocated(body) - sum(tasks), max(tasks, default=0))


def _bytes(buffer: Any) -> int:
    return math.prod(int(extent) for extent in buffer.shape) * np.dtype(str(buffer.dtype)).itemsize
