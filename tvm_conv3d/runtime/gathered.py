"""Results that gather cells along each axis, by all threads: what pooling and interpolation are made of."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.gathered import COPY, Tables
from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads

if TYPE_CHECKING:
    from tvm import IRModule


def dtype_of(kind: str, array: np.ndarray) -> str:
    """The element type as the loops have it: copied are bits, of whatever."""
    return f"uint{8 * array.itemsize}" if kind == COPY else array.dtype.name


def gather(kind: str, x: np.ndarray, tables: Tables) -> np.ndarray:
    """The result, in memory of the output pool.

    Args:
        kind: how cells are combined.
        x: (batch, depth, height, width, channels), C-contiguous, of one of the spec's element types.
        tables: of `kind`, :func:`dtype_of` and the shape of `x`.

    Raises:
        MemoryError: there is none for the result.
    """
    out = output_pool.empty(tables.shape, x.dtype)
    places = (array.__array_interface__["data"][0] for array in (x, out, tables.numbers, tables.factors))
    code = _code(kind, dtype_of(kind, x))
    with exit_guard.in_flight():
        threads.run(code, *map(ctypes.c_void_p, places))
    return out


@functools.cache
def _code(kind: str, dtype: str) -> Any:
    identity = {"name": f"{kind} of gathered cells", "type": dtype}
    return helper_code.get(identity, lambda: _module(kind, dtype)).get_function("gather")


def _module(kind: str, dtype: str) -> IRModule:
    from tvm_conv3d.compute.llvm import gathered

    return gathered.module(kind, dtype)
