"""Stores of results past the caches, for outputs that no cache holds until they are read.

An ordinary store first fetches the line that it overwrites: of what a memory-bound layer moves, a third is for nothing.
LLVM emits non-temporal stores where the IR says so, which TVM's code generator does not: the stores become calls of a
function given as LLVM IR, which is inlined. The atomic operations at the end of a parallel loop order them before what
other threads read later.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_conv3d.schedules.llvm.passes import llvm_functions, marks

#: Mark of a function.
_PAST_CACHES = "tvm_conv3d.stores_past_caches"

#: Bytes of the vectors that are stored so: whole cache lines, or halves that a core combines.
_VECTOR_BYTES = (32, 64)


#: Name of the buffer that holds the result.
OUTPUT = "out"

#: An address that is not aligned, as that of a foreign buffer, is stored to in the ordinary way.
_FUNCTION = """
define void @{name}(ptr %place, <{lanes} x {type}> %value) alwaysinline nounwind {{
  %address = ptrtoint ptr %place to i64
  %rest = and i64 %address, {mask}
  %aligned = icmp eq i64 %rest, 0
  br i1 %aligned, label %past, label %through
past:
  store <{lanes} x {type}> %value, ptr %place, align {bytes}, !nontemporal !0
  ret void
through:
  store <{lanes} x {type}> %value, ptr %place, align {element}
  ret void
}}
!0 = !{{i32 1}}
"""


def mark(sch: Schedule) -> None:
    """Marks a function whose output is stored so."""
    marks.on_output(sch, _PAST_CACHES)


@marks.function_pass("stream_stores", _PAST_CACHES)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function lowered to vectors with the vector stores to its output made non-temporal."""
    used: dict[str, str] = {}

    def streamed(store: tirx.BufferStore) -> Any:
        index = store.indices[0]
        dtype = str(store.buffer.dtype)
        if store.buffer.name != OUTPUT or dtype not in llvm_functions.TYPES or not isinstance(index, tirx.Ramp):
            return store
        lanes, (llvm_type, element) = int(index.lanes), llvm_functions.TYPES[dtype]
        if int(index.stride) != 1 or lanes * element not in _VECTOR_BYTES:
            return store
        name = f"tvm_conv3d_stream_{dtype}x{lanes}"
        size = lanes * element
        used[name] = _FUNCTION.format(
            name=name, lanes=lanes, type=llvm_type, mask=size - 1, bytes=size, element=element
        )
        return llvm_functions.call(name, llvm_functions.address(store.buffer, index.base, "w"), store.value)

    return llvm_functions.with_functions(
        function, tvm_ffi.structural_map(function.body, (tirx.BufferStore, streamed)), used
    )
