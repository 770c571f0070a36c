"""From TE to a schedulable function whose buffers may lie at any address."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, te
from tvm.tirx import PrimFunc

from tvm_conv3d.compute.shared import parameters, tiled_output
from tvm_conv3d.compute.shared.argument import ROLES, Argument
from tvm_conv3d.compute.shared.tiled_output import Tiling

#: Elements of a tensor from which on indices have 64 bits: TVM's 32-bit indices overflow silently.
WIDE = 2**29


@dataclass(frozen=True)
class Declaration:
    """One convolution in TE.

    Attributes:
        tensors: in the order of the arguments, each named as in
            :data:`tvm_conv3d.compute.shared.argument.ROLES`, which tells its role.
        tiling: of the output, where it is declared in whole tiles (:mod:`tvm_conv3d.compute.shared.tiled_output`).
        kept: tensors that one kernel of a GPU fills and a later one reads.
        aligned: the arguments lie at multiples of 16 bytes, as all memory of GPUs does.
        stages_in_tiles: where the output is declared in tiles, the other stages exist in tiles only.
    """

    tensors: tuple[te.Tensor, ...]
    tiling: Tiling | None = None
    kept: tuple[te.Tensor, ...] = ()
    aligned: bool = False
    stages_in_tiles: bool = True

    def module(self) -> IRModule:
        """The function `main`, unscheduled."""
        in_tiles = self.tiling is not None and self.stages_in_tiles
        counted = (*self.tensors, *self.kept) if in_tiles else _all(self.tensors)
        wide = max(math.prod(_shape(tensor)) for tensor in counted) >= WIDE
        function = te.create_prim_func(list(self.tensors), index_dtype_override="int64" if wide else None)
        if self.tiling is None:
            return IRModule({"main": unaligned(function)})
        function = function if self.aligned else unaligned(function)
        return IRModule({"main": tiled_output.mark(function, self.tiling)})

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """What the function `main` takes, once it is scheduled.

        Raises:
            KeyError: a tensor has a name of no role.
        """
        return tuple(map(self._argument, self.tensors))

    def _argument(self, tensor: te.Tensor) -> Argument:
        name, shape = str(tensor.op.name), _shape(tensor)
        if self.tiling is not None and name == tiled_output.STORE:
            shape = self.tiling.shape
        return Argument(name, ROLES[name], shape, str(tensor.dtype))

    def intermediate_bytes(self) -> int:
        """Bytes of all tensors between the arguments, each as a whole: more than any schedule of them allocates."""
        arguments = {tensor.op for tensor in self.tensors}
        return sum(_bytes(tensor) for tensor in _all(self.tensors) if tensor.op not in arguments)

    def kept_bytes(self) -> int:
        """Bytes of the tensors between a GPU's kernels."""
        return sum(map(_bytes, self.kept))


def _all(tensors: Iterable[te.Tensor]) -> list[te.Tensor]:
    """These tensors and those they are computed from, each once."""
    found, seen, left = [], set(), list(tensors)
    while left:
        tensor = left.pop()
        if tensor.op not in seen:
            seen.add(tensor.op)
            found.append(tensor)
            left.extend(tensor.op.input_tensors)
    return found


def _bytes(tensor: te.Tensor) -> int:
    return math.prod(_shape(tensor)) * np.dtype(str(tensor.dtype)).itemsize


def _shape(tensor: te.Tensor) -> tuple[int, ...]:
    return tuple(int(extent) for extent in tensor.shape)


def unaligned(function: PrimFunc) -> PrimFunc:
    """`function` with parameters that need no more than their element's alignment.

    Generated code assumes 64-byte aligned buffers and does not check; NumPy aligns to 16. Unaligned vector loads cost
    nothing measurable.
    """
    new = {}
    for parameter in function.params:
        new[str(parameter.name)] = parameters.like(parameter, alignment=np.dtype(str(parameter.ty.dtype)).itemsize)
    return parameters.replaced(function, new)
