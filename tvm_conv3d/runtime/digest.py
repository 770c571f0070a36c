"""What tells one content of an array from another: a digest of its bytes, made by all threads as fast as memory."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.runtime import exit_guard, helper_code, threads

if TYPE_CHECKING:
    from tvm import IRModule

#: Bytes of a task, and tasks, at most; each leaves a word in the digest.
_CHUNK, _MAX_TASKS = 1 << 16, 256


def of(array: np.ndarray) -> bytes:
    """The digest of an array's bytes in the order of memory: equal for equal bytes, else equal by accident only.

    Of one word of 64 bits for each 64 KiB, up to 256 words. It depends on the bytes and their number alone: shape,
    strides and type are to be compared beside it.

    Args:
        array: :func:`is_dense`.
    """
    size = array.nbytes
    chunk = _CHUNK * max(1, -(-size // (_CHUNK * _MAX_TASKS)))
    words = (ctypes.c_int64 * max(1, -(-size // chunk)))()
    data, _ = array.__array_interface__["data"]
    arguments = (ctypes.c_void_p(data), size, chunk, ctypes.c_void_p(ctypes.addressof(words)))
    with exit_guard.in_flight():
        if size <= chunk:
            # one task: how many threads there are is not worth asking
            _code()(*arguments)
        else:
            threads.run(_code(), *arguments)
    return bytes(words)


def is_dense(array: np.ndarray) -> bool:
    """Whether the elements fill the memory from the first one on, each once, along axes in any order."""
    return array.flags.c_contiguous or _is_dense(array.shape, array.strides, array.itemsize)


@functools.lru_cache(1024)
def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    step = itemsize
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


@functools.cache
def _code() -> Any:
    return helper_code.get({"name": "digest of an array's bytes"}, _module).get_function("digest")


def _module() -> IRModule:
    from tvm_conv3d.compute.shared import digest

    return digest.module()
