"""How much one block of threads computes and moves, by the variant of a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import WEIGHT_GRADIENT

if TYPE_CHECKING:
    from tvm_conv3d.compute.cuda.implicit_gemm import GemmVariant
    from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
    from tvm_conv3d.compute.cuda.variants import (
        WeightGradientGemmVariant,
        WeightGradientWindowVariant,
        WinogradGemmVariant,
    )
    from tvm_conv3d.compute.cuda.window import WindowVariant

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """Of one block of a kernel.

    Attributes:
        flops: floating-point operations, those on padding included.
        bytes: read from and written to caches and memory.
        least_bytes: of the whole kernel: what it reads and writes, once.
        part: of the plan that the kernel computes; empty for all of it.
    """

    flops: int
    bytes: int
    least_bytes: int
    part: str = ""


def works_of(plan: Plan, blocks: Sequence[int]) -> tuple[Work, ...]:
    """The work of each kernel of a GPU plan, in order, by the blocks that each has."""
    if plan.algorithm == "winograd_gemm":
        return _of_winograd(plan, blocks)
    if plan.spec.direction == WEIGHT_GRADIENT:
        return _of_weight_gradient(plan, blocks)
    if getattr(plan.variant, "turned", False):
        moved = 2 * _BYTES[plan.spec.dtype] * math.prod(plan.spec.input_shape)
        return (Work(0, moved // blocks[0], moved, "turning"), *_of_products(plan, blocks[1:]))
    return _of_products(plan, blocks)


def _of_products(plan: Plan, blocks: Sequence[int]) -> tuple[Work, ...]:
    """Of the matrix product, or of its parts and their addition; and of windows."""
    if getattr(plan.variant, "parts", 1) > 1:
        return _of_parts(plan, blocks)
    return (_of_one_kernel(plan),)


def _of_one_kernel(plan: Plan) -> Work:
    item, sums = _BYTES[plan.spec.dtype], _BYTES[plan.spec.accumulator]
    weight = item if plan.algorithm == "tensor_gemm" else sums
    whole = math.prod(plan.spec.input_shape) + math.prod(plan.spec.output_shape)
    least = whole * item + math.prod(plan.spec.kernel_shape) * weight
    flops, read, weights, written = _of_window(plan) if plan.algorithm == "window" else _of_product(plan)
    return Work(flops, (read + written) * item + weights * weight, least)


def _of_product(plan: Plan) -> tuple[int, int, int, int]:
    """Operations, and elements of input, weights and output."""
    from tvm_conv3d.compute.cuda.implicit_gemm import extents_of

    variant = cast("GemmVariant | TensorVariant", plan.variant)
    e = extents_of(canonicalize(plan.spec), variant)
    terms = e.turns * variant.step // variant.parts
    cells, filters = variant.cells, variant.filters
    return 2 * cells * filters * terms, cells * terms, filters * terms, cells * filters


def _of_parts(plan: Plan, blocks: Sequence[int]) -> tuple[Work, ...]:
    """Of the products of all parts, and of their addition."""
    spec, variant, whole = plan.spec, cast("GemmVariant | TensorVariant", plan.variant), _of_one_kernel(plan)
    sums = _BYTES[spec.accumulator] * variant.cells * variant.filters
    written = math.prod(spec.output_shape) * _BYTES[spec.dtype]
    tile = _BYTES[spec.dtype] * variant.cells * variant.filters
    added = blocks[0] * sums + written
    return (
        Work(whole.flops, whole.bytes - tile + sums, whole.least_bytes - written + blocks[0] * sums, "product"),
        Work(0, added // blocks[1], added, "addition"),
    )


def _of_window(plan: Plan) -> tuple[int, int, int, int]:
    # of transposed convolutions the one that they are computed as
    spec, variant = canonicalize(plan.spec), cast("WindowVariant", plan.variant)
    tiles = (variant.planes, variant.rows, variant.columns)
    held = [
        k if tile == 1 else (tile - 1) * stride + reach
        for k, tile, stride, reach in zip(spec.kernel, tiles, spec.strides, spec.window, strict=True)
    ]
    filters = variant.threads * variant.lanes
    cells, taps = filters * math.prod(tiles), spec.group_channels * math.prod(spec.kernel)
    return 2 * cells * taps, filters * spec.group_channels * math.prod(held), filters * taps, cells


def _of_winograd(plan: Plan, blocks: Sequence[int]) -> tuple[Work, ...]:
    """Of the input's transform, the matrix products, and the inverse transform; of transforms, what they move."""
    from tvm_conv3d.compute.cuda.winograd_extents import extents_of

    spec, variant = canonicalize(plan.spec), cast("WinogradGemmVariant", plan.variant)
    e = extents_of(spec, variant)
    item, frequencies = _BYTES[spec.dtype], math.prod(e.frequencies)
    cells, filters, terms = variant.cells, variant.filters, e.taps * e.steps * variant.step
    data = frequencies * e.steps * variant.step * math.prod(e.data_shape)
    sums = frequencies * e.cell_blocks * e.filter_blocks * cells * filters
    weights = frequencies * terms * e.filter_blocks * filters
    first = item * (math.prod(spec.input_shape) + data)
    last = item * (math.prod(spec.output_shape) + sums)
    block = item * (terms * (cells + filters) + cells * filters)
    return (
        Work(0, first // blocks[0], first, "data"),
        Work(2 * cells * filters * terms, block, item * (data + weights + sums), "product"),
        Work(0, last // blocks[2], last, "result"),
    )


def _of_weight_gradient(plan: Plan, blocks: Sequence[int]) -> tuple[Work, ...]:
    """Of the products, of the addition of their parts, where there are any, and of the two kernels of the bias."""
    from tvm_conv3d.compute.cuda.bias_gradient import parts_of

    spec = canonicalize(plan.spec)
    item, sums = _BYTES[spec.dtype], _BYTES[spec.accumulator]
    given, gradient = (item * math.prod(shape) for shape in (spec.input_shape, spec.output_shape))
    written = item * math.prod(plan.spec.kernel_shape)
    whole = plan.algorithm == "weight_gradient_gemm" and plan.variant.parts == 1  # type: ignore[attr-defined]
    flops, read, weights = _of_weights_tile(plan) if plan.algorithm.endswith("gemm") else _of_weights_window(plan)
    kept = blocks[0] * weights * sums
    stored = weights * (item if whole else sums)
    works = [Work(flops, read * item + stored, given + gradient + (written if whole else kept), "product")]
    if not whole:
        works.append(Work(0, (kept + written) // blocks[1], kept + written, "addition"))
    if spec.bias:
        first, last = blocks[len(works) :]
        partial = sums * spec.filters * parts_of(spec)
        of_bias = item * spec.filters
        works.append(Work(0, (gradient + partial) // first, gradient + partial, "bias"))
        works.append(Work(0, (partial + of_bias) // last, partial + of_bias, "bias addition"))
    return tuple(works)


def _of_weights_tile(plan: Plan) -> tuple[int, int, int]:
    """Operations of a block, and elements that it reads, and sums."""
    from tvm_conv3d.compute.cuda.weight_gradient_gemm import extents_of

    variant = cast("WeightGradientGemmVariant", plan.variant)
    terms = extents_of(canonicalize(plan.spec), variant).turns * variant.step
    sums = variant.cells * variant.filters
    return 2 * sums * terms, (variant.cells + variant.filters) * terms, sums


def _of_weights_window(plan: Plan) -> tuple[int, int, int]:
    """The same where threads have windows."""
    from tvm_conv3d.compute.cuda.weight_gradient_window import runs_of

    spec, variant = canonicalize(plan.spec), cast("WeightGradientWindowVariant", plan.variant)
    runs, threads = -(-runs_of(spec, variant) // variant.parts), variant.threads_parts * variant.threads_filters
    held = (variant.columns - 1) * spec.strides[2] + variant.taps
    sums = threads * variant.taps
    return 2 * sums * runs * variant.columns, threads * runs * (held + variant.columns), sums
