"""Whether fetching ahead pays: the next tile's input, or the next panel of weights."""

from __future__ import annotations

import math

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec

#: Bytes of an input, or of weights, at most, so that an offset behind it still has 32 bits.
_MAX_BYTES = 2**30

#: Bytes of packed weights, at least: fewer stay in a core's own cache.
_MIN_WEIGHTS = 2**20


def pays(spec: CanonicalSpec) -> bool:
    """Whether each input is read by one window and set of filters only, and has an offset of 32 bits."""
    once = all(k <= stride for k, stride in zip(spec.kernel, spec.strides, strict=True))
    return once and spec.sets == 1 and math.prod(spec.input_shape) * np.dtype(spec.dtype).itemsize <= _MAX_BYTES


def weights_pay(packed_bytes: float) -> bool:
    """Whether so many bytes of packed weights are read anew by each task, and have offsets of 32 bits."""
    return _MIN_WEIGHTS <= packed_bytes <= _MAX_BYTES
