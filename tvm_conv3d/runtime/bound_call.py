"""A convolution on this CPU bound to its packed weights: called by addresses, with nothing left to look up.

A network calls its layers with the caches full of volumes: whatever Python looks at between two of them comes from
memory, and takes several times as long as in a loop over one layer.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tvm_conv3d.runtime import interchange, threads
from tvm_conv3d.runtime.cpu_backend import CpuCall
from tvm_conv3d.runtime.reserve import reserve
from tvm_conv3d.runtime.weights import Packed
from tvm_conv3d.spec import CHANNELS_LAST, Conv3DSpec
from tvm_conv3d.support.dtypes import numpy_dtype


class _Buffer(ctypes.Structure):
    """DLPack's DLTensor: memory without gaps as compiled functions take it, wherever `data` says that it lies."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
    )

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: np.dtype) -> _Buffer:
        extents = (ctypes.c_int64 * len(shape))(*shape)
        # bfloat16 goes as integers, as from NumPy
        code = _FLOAT if dtype.kind == "f" else _UNSIGNED
        made = cls(None, (_CPU, 0), len(shape), code, 8 * dtype.itemsize, 1, ctypes.addressof(extents), None, 0)
        made.extents = extents
        return made

    @property
    def argument(self) -> ctypes.c_void_p:
        """It as an argument."""
        return ctypes.c_void_p(ctypes.addressof(self))


#: DLPack's numbers of kinds of elements, and of the CPU.
_UNSIGNED, _FLOAT, _CPU = 1, 2, 1


class _Arguments:
    """All arguments of one call at a time.

    Attributes:
        x, out, residual: whose addresses are still to be set; the last is of no use where the spec adds none.
        ordered: what the function takes.
    """

    def __init__(self, call: CpuCall, packed: Packed[Any]) -> None:
        code, spec = call.code, call.plan.spec
        dtype = numpy_dtype(spec.dtype)
        self.x, self.out = _Buffer.of(code.x, dtype), _Buffer.of(code.out, dtype)
        self.residual = _Buffer.of(code.residual or (), dtype)
        self._flags = None if code.flags is None else np.empty(code.flags, spec.accumulator)
        kernel, bias = packed.form
        residual = None if code.residual is None else self.residual.argument
        told = None if self._flags is None else interchange.exported(self._flags)
        self.ordered = code.ordered((self.x.argument, kernel, bias, residual, self.out.argument, told))

    def trusted(self) -> bool:
        """Whether the code says that its result can be."""
        return self._flags is None or bool(np.isfinite(self._flags).all())


class BoundCall:
    """A prepared call with its packed weights; several threads may use it.

    Args:
        call: of the convolution.
        packed: weights in its layout.
    """

    def __init__(self, call: CpuCall, packed: Packed[Any]) -> None:
        self._call = call
        self._packed = packed
        self._spare = [_Arguments(call, packed)]

    @property
    def spec(self) -> Conv3DSpec:
        """The problem."""
        return self._call.plan.spec

    @property
    def may_overwrite(self) -> bool:
        """Whether the result may be written over the residual operand: each element is stored once, after it was read.

        Rows of a single channel are no such case: their tails are vectors that overlap those before them
        (:mod:`tvm_conv3d.schedules.llvm.passes.vectorize_row_stores`).
        """
        spec = self.spec
        return spec.residual and spec.data_format == CHANNELS_LAST and spec.output_shape[-1] > 1

    @property
    def doubtful(self) -> bool:
        """Whether the last data, or the weights, were found to hold what :meth:`fill` can't be trusted with."""
        return bool(self._call.doubts)

    def fill(self, out: int, x: int, residual: int | None, count: int) -> bool:
        """Fills memory with the convolution of other memory.

        Args:
            out: address of dense memory of the spec's output shape and type, shared with nothing that is read, but
                where :attr:`may_overwrite` says so it may be that of the residual operand.
            x: likewise of its input shape.
            residual: as `out`, where the spec adds one.
            count: of threads.

        Returns:
            False where the result can't be trusted, and :meth:`tvm_conv3d.runtime.executor.Executor.convolve` is to be
            asked: data or weights may hold NaN or infinity.

        Raises:
            MemoryError: there is none for the intermediates.
        """
        call = self._call
        if self.doubtful:
            return False
        reserve(call.loaded, call.loaded.workspace)
        try:
            arguments = self._spare.pop()
        except IndexError:
            # another thread is in the midst of this call
            arguments = _Arguments(call, self._packed)
        arguments.x.data, arguments.out.data, arguments.residual.data = x, out, residual
        threads.run_by(count, call.code.function, *arguments.ordered)
        trusted = arguments.trusted()
        self._spare.append(arguments)
        return trusted
