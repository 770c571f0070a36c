"""Whether a result is to be stored past the caches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.llvm.passes import llvm_functions
from tvm_conv3d.schedules.llvm.passes.nontemporal_stores import _VECTOR_BYTES
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.cpu import CpuTraits

Variant = Any  # of one of the algorithms


#: Least bytes of an output that is stored so; memory of smaller results is not aligned to vectors.
MIN_BYTES = 1 << 20


#: Input and output, as multiples of the last cache, of which it keeps less than half.
_TIMES_CACHE = 2


def streaming(spec: CanonicalSpec, variant: Variant, lanes: int, run: int = 0) -> list[Variant]:
    """`variant` with such stores; none where the output is small or not made of whole vectors of `lanes`."""
    return [replace(variant, stream=True)] if _stored_bytes(spec, lanes, run) >= MIN_BYTES else []


def outgrows_caches(spec: CanonicalSpec, traits: CpuTraits, lanes: int, run: int = 0) -> bool:
    """Whether so much is stored in whole vectors that little of it is left in the caches for the next layer.

    Args:
        spec: the problem.
        traits: the CPU.
        lanes: of the vectors.
        run: in channels_first or of a single filter, neighbouring elements of a row that are stored one after the
            other.
    """
    return _stored_bytes(spec, lanes, run) >= max(MIN_BYTES, traits.l3 // 2)


def passes_through(spec: CanonicalSpec, traits: CpuTraits, lanes: int, run: int) -> bool:
    """Whether input and output together outgrow the caches by so much that little of the output would be left in them.

    Arguments as in :func:`outgrows_caches`.
    """
    if _stored_bytes(spec, lanes, run) < MIN_BYTES:
        return False
    read = math.prod(spec.input_shape) * np.dtype(spec.accumulator).itemsize
    return read + output_bytes(spec) >= _TIMES_CACHE * traits.l3


def output_bytes(spec: CanonicalSpec) -> int:
    """Bytes of the output, none where no function stores elements of its type."""
    return (
        math.prod(spec.output_shape) * llvm_functions.TYPES[spec.dtype][1] if spec.dtype in llvm_functions.TYPES else 0
    )


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
