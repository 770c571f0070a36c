"""Stores of the first elements of a vector, and of no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx

from tvm_conv3d.schedules.llvm.rewrites import injected

_FUNCTION = """
declare void @llvm.masked.store.v{lanes}f{bits}.p0(<{lanes} x {type}>, ptr, i32, <{lanes} x i1>)
define void @{name}(ptr %place, <{lanes} x {type}> %value) alwaysinline nounwind {{
  call void @llvm.masked.store.v{lanes}f{bits}.p0(
    <{lanes} x {type}> %value, ptr %place, i32 {element}, <{lanes} x i1> <{mask}>)
  ret void
}}
"""


def masked(store: tirx.BufferStore, count: int, texts: dict[str, str]) -> Any:
    """`store`, of a vector, of its first `count` elements; adds the function that does it to `texts`, by its name."""
    index, dtype = store.indices[0], str(store.buffer.dtype)
    lanes, (llvm_type, element) = int(index.lanes), injected.TYPES[dtype]
    name = f"tvm_conv3d_store_{dtype}x{lanes}_{count}"
    mask = ", ".join(f"i1 {int(lane < count)}" for lane in range(lanes))
    texts[name] = _FUNCTION.format(name=name, lanes=lanes, type=llvm_type, bits=8 * element, mask=mask, element=element)
    return injected.call(name, injected.address(store.buffer, index.base, "w"), store.value)


def first_elements(statement: Any, count: Any, of_vector: Callable[[tirx.BufferStore], Any]) -> Any:
    """`statement`, which stores along a vectorized loop, for the first `count` lanes.

    Args:
        statement: lowered to vectors.
        count: lanes that are stored.
        of_vector: what takes the place of a store of a vector. TVM takes the lanes one by one instead where an
            activation calls a function that has no vector form: then their loop ends earlier.
    """
    found: list[tirx.For] = []
    tvm_ffi.structural_walk(statement, (tirx.For, found.append))

    def shortened(loop: tirx.For) -> tirx.For:
        extent = tirx.min(loop.extent, tirx.max(count, tirx.const(0, str(loop.extent.ty.dtype))))
        return tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, loop.thread_binding, loop.annotations)

    return tvm_ffi.structural_map(statement, (tirx.For, shortened) if found else (tirx.BufferStore, of_vector))
