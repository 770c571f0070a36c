"""Maxima of windows side by side of a convolution's results, which are not made as a whole where that costs time.

A network's first convolution makes its largest array of a few products for each element. Written to memory and read
again, it takes as long as these; so planes of windows are computed one after the other, in the caches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvm_conv3d.functional import training
from tvm_conv3d.runtime import interchange, output_pool
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import NO_PADS, Conv3DSpec, Triple
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.target.cpu import CpuTraits, host_target
from tvm_conv3d.target.resolve import traits_of

#: Products for each element of the result up to which memory counts as much as arithmetic: on a Zen 5, 27 take 16 ms
#: as a whole and 11 in parts, 1728 take 13 and 12.
_MOST_PRODUCTS = 128

#: The part of the shared cache that results of a convolution may take: there is its input, too, and the maxima.
_OF_CACHE = 0.5


def maxima(
    executor: Executor, spec: Conv3DSpec, x: np.ndarray, weights: Weights, window: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`tvm_conv3d.functional.training.max_pool` of a convolution.

    Args:
        executor: of the convolution.
        spec: of channels_last, of a type and with a window that :func:`tvm_conv3d.functional.training.takes` takes.
        x: of the spec's input shape.
        weights: as :meth:`tvm_conv3d.runtime.executor.Executor.convolve` takes them.
        window: depth, height and width in cells; a rest of the convolution's results is left out.

    Returns:
        The maxima, and as uint8 of their shape the number of each one's cell in its window.

    Raises:
        As :meth:`tvm_conv3d.runtime.executor.Executor.convolve`.
    """
    at_once = windows_at_once(spec, window)
    if at_once is None:
        return training.max_pool_of_any(executor.convolve(spec, interchange.wrap(x), weights), window)
    shape, dtype = training.pooled(spec.output_shape, window), numpy_dtype(spec.dtype)
    out = output_pool.empty(shape, dtype), output_pool.empty(shape, np.dtype(np.uint8))
    part = part_of(spec, window, at_once)
    results = output_pool.empty(part.output_shape, dtype)
    x = np.ascontiguousarray(x)
    for sample in range(spec.batch):
        for start in range(0, shape[1], at_once):
            # the last part computes some once more rather than have machine code of its own
            first = min(start, shape[1] - at_once)
            begin = first * window[0] * spec.strides[0]
            given = x[sample : sample + 1, begin : begin + part.size[0]]
            found = executor.convolve(part, interchange.wrap(given)._replace(out=results), weights)
            where = (slice(sample, sample + 1), slice(first, first + at_once))
            training.max_pool(found, window, (out[0][where], out[1][where]))
    return out


def windows_at_once(spec: Conv3DSpec, window: Triple) -> int | None:
    """Windows along the depth whose results lie in the caches; None where all are computed as a whole.

    Args:
        spec: of the convolution.
        window: depth, height and width in cells.
    """
    products = math.prod(spec.kernel) * spec.channels // spec.groups
    if products > _MOST_PRODUCTS or spec.pads[0] != NO_PADS[0] or 0 in training.pooled(spec.output_shape, window):
        return None
    traits = traits_of(host_target(1))
    assert isinstance(traits, CpuTraits)
    plane = math.prod(spec.output_shape[2:]) * window[0] * numpy_dtype(spec.dtype).itemsize
    at_once = max(1, int(_OF_CACHE * traits.l3) // plane)
    return at_once if at_once < spec.out_size[0] // window[0] else None


def part_of(spec: Conv3DSpec, window: Triple, count: int) -> Conv3DSpec:
    """The convolution of one sample that gives the results of so many windows along the depth."""
    planes = (count * window[0] - 1) * spec.strides[0] + (spec.kernel[0] - 1) * spec.dilation[0] + 1
    return replace(spec, batch=1, size=(planes, *spec.size[1:]))
