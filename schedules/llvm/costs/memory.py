"""What a plan moves, and how long it waits for it: what the cost models of several algorithms share."""

from __future__ import annotations

import math

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec

#: Cost of starting a row in channels_first, in positions copied: each row of a channel lies in a page of its own.
ROW = 40.0

#: Share of L3 that may be filled with what stays.
SHARE_OF_L3 = 0.5

#: Cycles for a byte of weights from memory, while all cores read.
_WEIGHTS = 0.13


def bytes_moved(spec: CanonicalSpec) -> float:
    """Bytes of input, but for what strides skip, and of output."""
    read = math.prod(min(1.0, window / stride) for window, stride in zip(spec.window, spec.strides, strict=True))
    return (read * math.prod(spec.input_shape) + math.prod(spec.output_shape)) * np.dtype(spec.accumulator).itemsize


def waiting(product: float, weights: float) -> float:
    """What weights from memory add to the cycles of products: the longer of both, nearly. Fitted to 13 last stages."""
    return math.hypot(product, _WEIGHTS * weights) - product
