"""Arrays of any order, strides and element type as contiguous ones: one copy, made by all threads."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.copy_order import plan
from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads

if TYPE_CHECKING:
    from tvm import IRModule

#: Element types that compiled copies read.
_SOURCES = frozenset(("bool", "float16", "bfloat16", "float32", "float64")).union(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)

#: Smaller copies lie in the caches: NumPy has made them before other threads have begun.
_MIN_BYTES = 1 << 20

#: Passes of TVM that find nothing to do in a copy, and take a third of the time of compiling it.
_NEEDLESS = [
    "s_tir.CompactBufferAllocation",
    "s_tir.HoistIfThenElse",
    "s_tir.RenormalizeSplitPattern",
    "tirx.RemoveNoOp",
]


def contiguous(
    array: np.ndarray,
    dtype: np.dtype[Any],
    empty: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray] = output_pool.empty,
) -> np.ndarray:
    """A copy of `array` in C order with elements of type `dtype`, rounded as by NumPy; too large ones become infinite.

    Args:
        array: numbers of any type, order, strides, alignment and byte order, of at most five axes longer than 1.
        dtype: float32, float64, float16 or bfloat16, in the machine's byte order.
        empty: gives the copy's memory.

    Raises:
        MemoryError: there is none for the copy.
    """
    out = empty(array.shape, dtype)
    if out.nbytes < _MIN_BYTES or not _is_plain(array):
        with np.errstate(all="ignore"):
            np.copyto(out, array, casting="unsafe")
        return out
    function, axes, tile = plan(array.shape, [stride // array.itemsize for stride in array.strides], array.itemsize)
    numbers = [*(number for column in zip(*axes, strict=True) for number in column), *tile]
    packed = (ctypes.c_int64 * len(numbers))(*numbers)
    copy = _compiled(function, *_types(array.dtype, dtype))
    with exit_guard.in_flight():
        threads.run(copy, *helper_code.pointers(array, out), ctypes.c_void_p(ctypes.addressof(packed)))
    return out


def _is_plain(array: np.ndarray) -> bool:
    """Whether compiled code may read the elements: whole ones, in the machine's byte order, at their places."""
    dtype, size = array.dtype, array.itemsize
    return (
        dtype.name in _SOURCES
        and dtype.isnative
        and array.flags.aligned
        and all(stride % size == 0 for stride in array.strides)
    )


def _types(source: np.dtype[Any], target: np.dtype[Any]) -> tuple[str, str]:
    """Names of the element types of a copy; where none is cast, those of their bits."""
    if source == target:
        return (f"uint{8 * source.itemsize}",) * 2
    return source.name, target.name


@functools.cache
def _compiled(function: str, source: str, target: str) -> Any:
    identity = {"name": f"{function} copy", "types": [source, target]}
    code = helper_code.get(identity, functools.partial(_module, function, source, target), _NEEDLESS)
    return code.get_function(function)


def _module(function: str, source: str, target: str) -> IRModule:
    from tvm_conv3d.compute.shared import strided_copy

    return strided_copy.module(function, source, target)
