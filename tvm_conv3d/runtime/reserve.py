"""Memory for a kernel's intermediates, made sure of before it runs."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.runtime import output_pool
from tvm_conv3d.runtime.threads import get_num_threads
from tvm_conv3d.support import process

#: Bytes a thread up to which a kernel's memory is taken for granted.
_SMALL_BYTES = 1 << 20


class _ThreadState(threading.local):
    """Kernels that this Python thread has run: TVM keeps their memory in the thread's pool for the next call."""

    def __init__(self) -> None:
        self.kernels: weakref.WeakSet[Any] = weakref.WeakSet()


_thread_state = process.keep("reserve: kernels that a thread has run", _ThreadState())


def reserve(kernel: Any, workspace: Workspace) -> None:
    """Makes sure, before this thread's first call of `kernel`, that there is memory for its intermediates.

    In the midst of compiled code a failing allocation would end the process.

    Args:
        kernel: any object that lives as long as the kernel.
        workspace: what it takes.

    Raises:
        MemoryError: there is not so much memory.
    """
    if workspace.shared + workspace.own <= _SMALL_BYTES or kernel in _thread_state.kernels:
        return
    threads = get_num_threads()
    needed = workspace.shared + workspace.own * threads
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        output_pool.release()
        try:
            np.empty(needed, np.uint8)
        except MemoryError:
            raise MemoryError(
                f"There is no memory for the convolution's intermediates: {needed} bytes for {threads} threads. "
                "Use fewer threads (tvm_conv3d.set_num_threads), a smaller `workspace_limit` or a smaller batch."
            ) from None
    _thread_state.kernels.add(kernel)
