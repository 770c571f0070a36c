"""Where a graph's volumes lie: in one piece of memory, each in a place that is free for as long as it is needed.

A pool that sees one volume after the other puts a small one into what a large one has left, which the next large one
then misses. A graph tells beforehand how large its volumes are, and from when to when they are needed: the largest are
placed first, each at the lowest address that is free all the while (greedy by size: Pisarchyk and Lee, Efficient
Memory Management for Deep Neural Net Inference, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.fx import Graph, Node

from tvm_conv3d.runtime import output_pool
from tvm_conv3d.torch.graph import in_place
from tvm_conv3d.torch.graph.rewriting import FRESH, laid_out, stays
from tvm_conv3d.torch.graph.tensors import info
from tvm_conv3d.torch.operators.bound_convolution import BoundConvolution

#: Bytes that places begin at multiples of: of a page, as the system's own memory does.
_ALIGNED = 4096


class Volume(NamedTuple):
    """Bytes that are needed from one time to another, both included."""

    first: int
    last: int
    nbytes: int

    def meets(self, other: Volume) -> bool:
        """Whether there is a time at which both are needed."""
        return self.first <= other.last and other.first <= self.last


def offsets(volumes: Sequence[Volume]) -> tuple[list[int], int]:
    """Where each volume begins, and how many bytes all of them take, no two in one place at one time."""
    starts, total = [0] * len(volumes), 0
    placed: list[int] = []
    for number in sorted(range(len(volumes)), key=lambda each: -volumes[each].nbytes):
        volume = volumes[number]
        for other in sorted(placed, key=starts.__getitem__):
            if not volume.meets(volumes[other]):
                continue
            if starts[number] + volume.nbytes <= starts[other]:
                break
            stop = starts[other] + volumes[other].nbytes
            starts[number] = max(starts[number], -(-stop // _ALIGNED) * _ALIGNED)
        placed.append(number)
        total = max(total, starts[number] + volume.nbytes)
    return starts, total


class _Placed:
    """An operator whose result is to lie in a part of some memory.

    Args:
        operator: whose result nobody else holds.
        start, stop: of the part, in bytes.
    """

    #: What :mod:`torch.fx` calls it.
    __name__ = "placed"

    def __init__(self, operator: Any, start: int, stop: int) -> None:
        self._operator, self._start, self._stop = operator, start, stop

    def __call__(self, memory: np.ndarray, *args: Any) -> Any:
        output_pool.offer(memory[self._start : self._stop])
        try:
            return self._operator(*args)
        finally:
            output_pool.offer(None)


class _Memory:
    """What a call's volumes lie in, `nbytes` long."""

    __name__ = "memory"

    def __init__(self, nbytes: int) -> None:
        self._shape = (nbytes,)

    def __call__(self) -> np.ndarray:
        return output_pool.empty(self._shape, np.dtype(np.uint8))


def place_volumes(graph: Graph) -> None:
    """Lets the graph's volumes lie in one piece of memory, but for those that are seen when it has returned.

    Args:
        graph: rewritten, some of its convolutions bound.
    """
    found = _volumes(graph)
    if len(found) < 2:
        return
    starts, total = offsets(list(found.values()))
    nodes = list(found)
    with graph.inserting_before(nodes[0]):
        memory = graph.call_function(_Memory(total))
    for node, start in zip(nodes, starts, strict=True):
        node.target = _Placed(node.target, start, start + found[node].nbytes)
        node.args = (memory, *node.args)


def _volumes(graph: Graph) -> dict[Node, Volume]:
    """The volumes that can be placed, by the nodes that make them, in their order."""
    times = {node: time for time, node in enumerate(graph.nodes)}
    found: dict[Node, Volume] = {}
    # of each tensor the volumes in whose memory it may lie
    of: dict[Node, set[Node]] = {}
    for node, time in times.items():
        sources = set().union(*(of.get(source, ()) for source in node.all_input_nodes))
        for source in sources:
            found[source] = found[source]._replace(last=time)
        if node.op == "output":
            for source in sources:
                del found[source]
            break
        of[node] = _shared(node, of, sources)
        if _is_fresh(node) and not of[node] and (nbytes := _nbytes(node)) >= output_pool.MIN_BYTES:
            found[node], of[node] = Volume(time, time, nbytes), {node}
    return found


def _shared(node: Node, of: dict[Node, set[Node]], sources: set[Node]) -> set[Node]:
    """Which of the volumes that a node reads its result may lie in."""
    if isinstance(node.target, BoundConvolution) and node.target.over:
        _, residual = node.args
        return of.get(residual, set())
    written = in_place.written(node.target, node.args, node.kwargs)
    if isinstance(written, Node):
        return of.get(written, set())
    return set() if _is_fresh(node) or _is_copied(node) else sources


def _is_fresh(node: Node) -> bool:
    return node.target in FRESH or isinstance(node.target, BoundConvolution)


def _is_copied(node: Node) -> bool:
    """Whether a node's result lies in another order of memory than what it is made of, so in memory of its own."""
    if node.target is not laid_out:
        return False
    source, strides = node.args
    of = info(source)
    if of is None or len(of.shape) != 5 or not _is_fresh(source):
        return False
    last = torch.empty(of.shape, device="meta", memory_format=torch.channels_last_3d)
    return not stays(of.shape, last.stride(), strides)


def _nbytes(node: Node) -> int:
    of = info(node)
    return 0 if of is None or of.device.type != "cpu" else of.nbytes
