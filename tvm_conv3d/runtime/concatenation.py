"""Channels of several arrays side by side in one, copied by all threads."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads

if TYPE_CHECKING:
    from tvm import IRModule

#: Bytes of the result that a task writes, about.
_TASK = 1 << 15

#: Arrays of a call, at most: each number of them is compiled by itself.
MOST = 64


def concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays joined along their last axis, in memory of the output pool.

    Args:
        arrays: 1 to :data:`MOST`, C-contiguous, of one element type and of shapes that differ in the last axis only.

    Raises:
        ValueError: there are more of them.
        MemoryError: there is none for the result.
    """
    if len(arrays) > MOST:
        raise ValueError(f"At most {MOST} arrays are joined at once. Received: {len(arrays)}")
    *outer, _ = arrays[0].shape
    channels = [array.shape[-1] for array in arrays]
    total = sum(channels)
    out = output_pool.empty((*outer, total), arrays[0].dtype)
    numbers = (math.prod(outer), max(1, _TASK // (total * out.itemsize)), total, *channels)
    packed = (ctypes.c_int64 * len(numbers))(*numbers)
    code = _code(len(arrays), 8 * out.itemsize)
    with exit_guard.in_flight():
        threads.run(code, *helper_code.pointers(*arrays, out), ctypes.c_void_p(ctypes.addressof(packed)))
    return out


@functools.cache
def _code(count: int, bits: int) -> Any:
    identity = {"name": "concatenation of channels", "arrays": count, "bits": bits}
    return helper_code.get(identity, functools.partial(_module, count, bits)).get_function("concatenate")


def _module(count: int, bits: int) -> IRModule:
    from tvm_conv3d.compute.shared import concatenated

    return concatenated.module(count, bits)
