"""How much one block of threads computes and moves, by the variant of a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_conv3d.plan import Plan
from tvm_conv3d.spec import Conv3DSpec

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """Of one block.

    Attributes:
        flops: floating-point operations, those on padding included.
        bytes: read from and written to caches and memory.
        least_bytes: of the whole convolution: input, weights and output once.
    """

    flops: int
    bytes: int
    least_bytes: int


def work_of(plan: Plan) -> Work:
    """The work of a GPU plan."""
    item, sums = _BYTES[plan.spec.dtype], _BYTES[plan.spec.accumulator]
    weight = item if plan.algorithm == "tensor_gemm" else sums
    whole = math.prod(plan.spec.input_shape) + math.prod(plan.spec.output_shape)
    least = whole * item + math.prod(plan.spec.kernel_shape) * weight
    flops, read, weights, written = _of_window(plan) if plan.algorithm == "window" else _of_product(plan)
    return Work(flops, (read + written) * item + weights * weight, least)


def _of_product(plan: Plan) -> tuple[int, int, int, int]:
    """Operations, and elements of input, weights and output."""
    from tvm_conv3d.compute.collapse import collapse
    from tvm_conv3d.compute.implicit_gemm import extents_of

    variant = plan.variant
    e = extents_of(collapse(plan.spec), variant)
    terms = math.prod(e.taps) * e.steps * variant.step
    cells, filters = variant.cells, variant.filters
    return 2 * cells * filters * terms, cells * terms, filters * terms, cells * filters


def _of_window(plan: Plan) -> tuple[int, int, int, int]:
    spec: Conv3DSpec = plan.spec
    variant = plan.variant
    kd, kh, kw = spec.kernel
    held = [
        k if tile == 1 else (tile - 1) * stride + reach
        for k, tile, stride, reach in zip(
            (kh, kw), (variant.rows, variant.columns), spec.strides[1:], spec.window[1:], strict=True
        )
    ]
    slices = kd * spec.group_channels
    cells = variant.threads * variant.rows * variant.columns
    taps = slices * kh * kw
    return 2 * cells * taps, variant.threads * slices * math.prod(held), variant.threads * taps, cells
