"""Whether fetching the next tile's input ahead pays."""

from __future__ import annotations

import math

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec

#: Bytes of an input, at most, so that an offset behind it still has 32 bits.
_MAX_BYTES = 2**30


def pays(spec: CanonicalSpec) -> bool:
    """Whether each input is read by one window and set of filters only, and has an offset of 32 bits."""
    once = all(k <= stride for k, stride in zip(spec.kernel, spec.strides, strict=True))
    return once and spec.sets == 1 and math.prod(spec.input_shape) * np.dtype(spec.dtype).itemsize <= _MAX_BYTES
