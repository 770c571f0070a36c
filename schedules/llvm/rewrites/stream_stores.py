"""Stores of results past the caches, for outputs that no cache holds until they are read.

An ordinary store first fetches the line that it overwrites: of what a memory-bound layer moves, a third is for nothing.
LLVM emits non-temporal stores where the IR says so, which TVM's code generator does not: the stores become calls of a
function given as LLVM IR, which is inlined. The caches' locks at the end of a parallel loop order them before what
other threads read later.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.schedules.llvm.rewrites import injected, marks
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.targets import CpuTraits

Variant = Any  # of one of the algorithms

#: Mark of a function.
_PAST_CACHES = "tvm_conv3d.stores_past_caches"

#: Bytes of the vectors that are worth it: whole cache lines, or halves that a core joins.
_VECTOR_BYTES = (32, 64)

#: Least bytes of an output that is stored so; memory of smaller results is not aligned to vectors.
LEAST_BYTES = 1 << 20

#: Input and output, as multiples of the last cache, of which it keeps less than half.
_TIMES_CACHE = 2

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


def streaming(spec: CanonicalSpec, variant: Variant, lanes: int, run: int = 0) -> list[Variant]:
    """`variant` with such stores; none where the output is small or not made of whole vectors of `lanes`."""
    return [replace(variant, stream=True)] if _stored_bytes(spec, lanes, run) >= LEAST_BYTES else []


def outgrows_caches(spec: CanonicalSpec, traits: CpuTraits, lanes: int, run: int = 0) -> bool:
    """Whether so much is stored in whole vectors that little of it is left in the caches for the next layer.

    Args:
        spec: the problem.
        traits: the CPU.
        lanes: of the vectors.
        run: in channels_first or of a single filter, neighbouring elements of a row that are stored one after the
            other.
    """
    return _stored_bytes(spec, lanes, run) >= max(LEAST_BYTES, traits.l3 // 2)


def passes_through(spec: CanonicalSpec, traits: CpuTraits, lanes: int, run: int) -> bool:
    """Whether input and output together outgrow the caches by so much that little of the output would be left in them.

    Arguments as in :func:`outgrows_caches`.
    """
    if _stored_bytes(spec, lanes, run) < LEAST_BYTES:
        return False
    read = math.prod(spec.input_shape) * np.dtype(spec.accumulator).itemsize
    return read + output_bytes(spec) >= _TIMES_CACHE * traits.l3


def output_bytes(spec: CanonicalSpec) -> int:
    """Bytes of the output, none where no function stores numbers of its type."""
    return math.prod(spec.output_shape) * injected.TYPES[spec.dtype][1] if spec.dtype in injected.TYPES else 0


def _stored_bytes(spec: CanonicalSpec, lanes: int, run: int = 0) -> int:
    """Bytes of the output, none where it is not made of whole vectors."""
    if spec.phased:
        # vectors are of one phase
        whole = spec.data_format == CHANNELS_LAST and spec.set_filters % lanes == 0
    elif spec.data_format == CHANNELS_LAST and spec.filters > 1:
        whole = spec.filters % lanes == 0
    else:
        whole = run > 0 and run % lanes == 0 and spec.out_size[2] % lanes == 0
    # rows of depthwise layers, told by 1, have vectors of any width
    fits = lanes == 1 or lanes * np.dtype(spec.accumulator).itemsize in _VECTOR_BYTES
    return output_bytes(spec) if whole and fits else 0


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
        if store.buffer.name != OUTPUT or dtype not in injected.TYPES or not isinstance(index, tirx.Ramp):
            return store
        lanes, (llvm_type, element) = int(index.lanes), injected.TYPES[dtype]
        if int(index.stride) != 1 or lanes * element not in _VECTOR_BYTES:
            return store
        name = f"tvm_conv3d_stream_{dtype}x{lanes}"
        size = lanes * element
        used[name] = _FUNCTION.format(
            name=name, lanes=lanes, type=llvm_type, mask=size - 1, bytes=size, element=element
        )
        return injected.call(name, injected.address(store.buffer, index.base, "w"), store.value)

    return injected.with_functions(function, tvm_ffi.structural_map(function.body, (tirx.BufferStore, streamed)), used)
