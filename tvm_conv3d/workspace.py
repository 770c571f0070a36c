"""Memory that a kernel takes for its intermediates: padded copies, transformed tiles, sums that await their store.

What a loop over tasks allocates is there once for each thread, the rest once for each call. The numbers are those of
the scheduled function before TVM lets buffers share memory, and so an upper bound.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d import buffers
from tvm_conv3d.threads import get_num_threads

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.target import Target

    from tvm_conv3d.plan import Plan

#: Bytes a thread that a plan may take unless the layer says otherwise.
DEFAULT_LIMIT = 256 << 20

#: Bytes a thread up to which a kernel's memory is taken for granted.
_LITTLE = 1 << 20


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


def check_limit(limit: Any) -> int:
    """`limit`, where it is a possible number of bytes.

    Raises:
        ValueError: it is no positive integer.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(
            "`workspace_limit` must be a number of bytes a thread, an integer of at least 1. "
            f"Received: workspace_limit={limit!r}"
        )
    return limit


def of_plan(plan: Plan, target: Target) -> Workspace:
    """What the plan's kernel takes: as noted when it was compiled, else worked out from its schedule."""
    from tvm_conv3d import build, cache

    kept = cache.workspace(build.artifact_key(plan, target))
    return of_module(build.scheduled_module(plan, target)) if kept is None else Workspace(*kept)


def of_module(module: IRModule) -> Workspace:
    """What a scheduled function takes, with each buffer as small as its use allows."""
    from tvm_conv3d.schedules.llvm.rewrites import lower

    return of_small_buffers(lower.to_small_buffers(module))


def of_small_buffers(module: IRModule) -> Workspace:
    """The same of a function whose buffers are that small."""
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


def bytes_per_thread(plan: Plan, target: Target, enough: int = 0) -> int:
    """Bytes a thread that the plan's kernel takes; an upper bound, found sooner, where that is not above `enough`.

    On a GPU, which counts as one thread, only what lies in its memory between kernels.
    """
    from tvm_conv3d.plan import algorithm_of
    from tvm_conv3d.targets import is_cuda, thread_count

    declaration = algorithm_of(plan, str(target.kind.name)).declare(plan.spec, plan.variant)
    if is_cuda(target):
        return declaration.kept_bytes()
    bound = declaration.intermediate_bytes()
    return bound if bound <= enough else of_plan(plan, target).per_thread(thread_count(target))


class _OfThread(threading.local):
    """Kernels that this Python thread has run: TVM keeps their memory in the thread's pool for the next call."""

    def __init__(self) -> None:
        self.kernels: weakref.WeakSet[Any] = weakref.WeakSet()


_mine = _OfThread()


def reserve(kernel: Any, workspace: Workspace) -> None:
    """Makes sure, before this thread's first call of `kernel`, that there is memory for its intermediates.

    In the midst of compiled code a failing allocation would end the process.

    Args:
        kernel: any object that lives as long as the kernel.
        workspace: what it takes.

    Raises:
        MemoryError: there is not so much memory.
    """
    if workspace.shared + workspace.own <= _LITTLE or kernel in _mine.kernels:
        return
    threads = get_num_threads()
    needed = workspace.shared + workspace.own * threads
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        buffers.release()
        try:
            np.empty(needed, np.uint8)
        except MemoryError:
            raise MemoryError(
                f"There is no memory for the convolution's intermediates: {needed} bytes for {threads} threads. "
                "Use fewer threads (tvm_conv3d.set_num_threads), a smaller `workspace_limit` or a smaller batch."
            ) from None
    _mine.kernels.add(kernel)


def _bytes(buffer: Any) -> int:
    return math.prod(int(extent) for extent in buffer.shape) * np.dtype(str(buffer.dtype)).itemsize
