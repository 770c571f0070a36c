"""What a plan moves, and how long it waits for it: what the cost models of several algorithms share."""

from __future__ import annotations

import math

import numpy as np

from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.target.cpu import CpuTraits

#: Share of L3 that may be filled with what stays there from call to call.
SHARE_OF_L3 = 0.5

#: Cycles for a byte of weights, and of input and output, from memory, while all cores read.
_WEIGHTS, _BYTE = 0.13, 0.12

#: Bytes of weights that L3 gives as fast as they are asked for, and cycles for one of the others, while all cores read.
_QUICK_WEIGHTS, _WEIGHTS_L3 = 4 << 20, 0.08


def moved(total: float, traits: CpuTraits, product: float) -> dict[str, float]:
    """The amounts of a core's share of `total` bytes of input and output, beside `product` cycles of multiply-adds.

    Bytes of "l3" where that holds all, else cycles of waiting for "memory".
    """
    if total <= SHARE_OF_L3 * traits.l3:
        return {"l3": total / traits.cores}
    return {"memory": _waiting(product, _BYTE * total / traits.cores)}


def waiting_for_weights(product: float, weights: float) -> float:
    """Cycles that bytes of weights from memory add to those of products. Fitted to 13 last stages."""
    return _waiting(product, _WEIGHTS * weights)


def waiting_for_l3(product: float, weights: float) -> float:
    """Cycles that bytes of weights from L3 add to those of products. Fitted to 146 layers on a Zen 5."""
    return _waiting(product, _WEIGHTS_L3 * max(0.0, weights - _QUICK_WEIGHTS))


def _waiting(product: float, transfer: float) -> float:
    """What a transfer adds to the cycles of products that are computed meanwhile: the longer of both, nearly."""
    return math.hypot(product, transfer) - product


def bytes_moved(spec: CanonicalSpec) -> float:
    """Bytes of input, but for what strides skip, and of output."""
    read = math.prod(min(1.0, window / stride) for window, stride in zip(spec.window, spec.strides, strict=True))
    return (read * math.prod(spec.input_shape) + math.prod(spec.output_shape)) * np.dtype(spec.accumulator).itemsize
