"""From TE to a schedulable function whose buffers may lie at any address."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, ir, te
from tvm.tirx import PrimFunc

from tvm_conv3d.compute import cut
from tvm_conv3d.compute.cut import Tiling


@dataclass(frozen=True)
class Declaration:
    """One convolution in TE.

    Attributes:
        tensors: input, packed weights, packed bias, output, in the order of the arguments; then maybe flags, of which
            the code makes some not finite where a sum is not, and its result must not be trusted.
        tiling: of the output, where it is declared in whole tiles, for GPUs (:mod:`tvm_conv3d.compute.cut`).
    """

    tensors: tuple[te.Tensor, ...]
    tiling: Tiling | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arguments."""
        found = [tuple(int(extent) for extent in tensor.shape) for tensor in self.tensors]
        if self.tiling is not None:
            found[3] = self.tiling.shape
        return tuple(found)

    def _largest(self) -> int:
        """Elements of the largest argument: the stages in between exist in tiles only."""
        return max(math.prod(shape) for shape in self.shapes)

    def module(self) -> IRModule:
        """The function `main`, unscheduled."""
        # TVM's 32-bit indices overflow silently
        wide = (_most_elements(self.tensors) if self.tiling is None else self._largest()) >= 2**29
        function = te.create_prim_func(list(self.tensors), index_dtype_override="int64" if wide else None)
        if self.tiling is None:
            return IRModule({"main": _unaligned(function)})
        # for GPUs, whose buffers lie at multiples of 16 bytes
        return IRModule({"main": cut.mark(function, self.tiling)})


def _most_elements(tensors: Iterable[te.Tensor]) -> int:
    """Elements of the largest tensor among these and those they are computed from."""
    largest, seen, left = 0, set(), list(tensors)
    while left:
        tensor = left.pop()
        if tensor.op not in seen:
            seen.add(tensor.op)
            largest = max(largest, math.prod(int(extent) for extent in tensor.shape))
            left.extend(tensor.op.input_tensors)
    return largest


def _unaligned(function: PrimFunc) -> PrimFunc:
    """`function` with parameters that need no more than their element's alignment.

    Generated code assumes 64-byte aligned buffers and does not check; NumPy aligns to 16. TE has no knob for it, so the
    parameters' types are edited in the serialized graph. Unaligned vector loads cost nothing measurable.
    """
    graph = json.loads(ir.save_json(function))
    nodes = graph["nodes"]
    root = nodes[graph["root_index"]]["data"]
    for parameter in nodes[root["params"]]["data"]:
        buffer_type = nodes[nodes[parameter]["data"]["ty"]]
        if buffer_type["type"] != "tirx.BufferType":
            raise RuntimeError(f"Unexpected parameter type {buffer_type['type']}: is this another TVM version?")
        element = nodes[buffer_type["data"]["dtype"]]["data"]["dtype"]
        buffer_type["data"]["data_alignment"] = np.dtype(element).itemsize
    return ir.load_json(json.dumps(graph))
