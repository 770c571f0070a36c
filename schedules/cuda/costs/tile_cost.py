"""A cost model of matrix products in tiles, by which default tiles are chosen where nothing was tuned.

The busiest multiprocessor computes ceil(blocks / multiprocessors) tiles. Each takes the time of its arithmetic at the
published peak, of the index arithmetic of its gather, and of its traffic with the second-level cache. The constants are
published or usual figures; the model has not been fitted to measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from tvm_conv3d.compute.cuda.implicit_gemm import Cut, GemmVariant, extents_of
from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.target.gpu import GpuTraits

V = TypeVar("V", GemmVariant, TensorVariant)


class InParts(Protocol):
    """What variants have that may cut a reduction."""

    @property
    def parts(self) -> int: ...


P = TypeVar("P", bound=InParts)

#: Bytes a nanosecond between one multiprocessor and the second-level cache.
_CACHE_BANDWIDTH = 40.0

#: Cost of finding one gathered vector's place and conditions, in floating-point operations.
_GATHER = 40.0

#: What a multiprocessor loses while one block alone, or few, wait for their own loads.
_ALONE, _FEW = 1.5, 1.2

#: Nanoseconds of a further launch and of the GPU's running empty before it.
LAUNCH = 3000.0

#: Parts of a reduction, at most, and terms of a part, at least.
MAX_PARTS, MIN_TERMS = 64, 128

#: Parts of a gradient of weights, at most, bytes that their sums may take, and nanoseconds that a thread waits for one
#: when it adds them one after the other.
MAX_SUMMED_PARTS, MAX_KEPT, ADDITION = 1024, 64 << 20, 100.0

#: What needs several kernels must be cheaper by this factor than one kernel, as both are estimates.
ADVANTAGE = 0.7

#: Steps that are on their way at once in products in registers that compete while tuning, and of how many of the best.
STAGES, VARIED = (2, 3), 2

#: Share of a reduction that may be padding before taps and channels are flattened.
_MAX_WASTE = 0.2


def is_flat(spec: CanonicalSpec, step: int) -> bool:
    """Whether taps and channels are one index of the reduction, as steps of channels alone would be much padding."""
    waste = 1 - spec.group_channels / (-(-spec.group_channels // step) * step)
    return waste > _MAX_WASTE and math.prod(spec.kernel) > 1


def nanoseconds(
    spec: CanonicalSpec,
    traits: GpuTraits,
    variant: Cut,
    item: int,
    tensor: bool,
    share: float,
    fill: float | None = None,
) -> float:
    """The modelled time of a whole convolution.

    Args:
        spec: the problem.
        traits: the GPU.
        variant: what it is cut into.
        item: bytes of a factor.
        tensor: whether tensor cores multiply.
        share: of the peak that a tile of this kind can reach.
        fill: nanoseconds that a tile waits for its first loads, where the others run ahead of the arithmetic.
    """
    e = extents_of(spec, variant)
    cells, filters, parts = variant.cells, variant.filters, variant.parts
    terms = e.turns * variant.step // parts
    blocks = e.planes * spec.sets * e.cell_blocks * e.filter_blocks * parts
    product = of_tiles(traits, blocks, cells, filters, terms, item, variant.vector, tensor, share, fill)
    if parts == 1:
        return product
    # sums, which are never of a half type, are written and read
    moved = 2 * max(4, item) * blocks * cells * filters
    return product + LAUNCH + moved / traits.gigabytes


def in_parts(spec: CanonicalSpec, traits: GpuTraits, variant: V, price: Callable[[V], float]) -> dict[V, float]:
    """`variant`, and where it has fewer tiles than the GPU has multiprocessors its best cut into parts, with prices."""
    e = extents_of(spec, variant)
    found = {variant: price(variant)}
    blocks = e.planes * spec.sets * e.cell_blocks * e.filter_blocks
    cuts = [p for p in divisors(e.turns) if 1 < p <= MAX_PARTS and e.turns // p * variant.step >= MIN_TERMS]
    if blocks < traits.multiprocessors and cuts:
        priced = {cut: price(cut) for cut in (replace(variant, parts=p) for p in cuts)}
        best = min(priced, key=lambda cut: priced[cut])
        found[best] = priced[best]
    return found


def cheapest_first(costs: dict[P, float]) -> list[tuple[P, float]]:
    """Variants with their prices; those in parts stand after those in one that are not much dearer."""
    return sorted(costs.items(), key=lambda pair: pair[1] if pair[0].parts == 1 else pair[1] / ADVANTAGE)


class RunsAhead(Protocol):
    """What variants have whose copies may run ahead of the product in registers."""

    @property
    def step(self) -> int: ...
    @property
    def stages(self) -> int: ...


def can_run_ahead(traits: GpuTraits, variant: RunsAhead, turns: int, bytes_of_term: int) -> bool:
    """Whether a GPU has asynchronous copies and the shared memory, and the reduction as many steps in one loop.

    Args:
        traits: the GPU.
        variant: with the steps that are on their way at once.
        turns: steps of the whole reduction, or of one of its parts.
        bytes_of_term: of shared memory, for one term of both factors.
    """
    terms, shared = turns * variant.step, variant.stages * variant.step * bytes_of_term
    whole = terms_of_part(terms, on_gpu=True) >= terms
    return traits.arch >= 80 and shared <= traits.shared_per_block and whole and variant.stages <= turns


def of_tiles(
    traits: GpuTraits,
    blocks: int,
    cells: int,
    filters: int,
    terms: int,
    item: int,
    vector: int,
    tensor: bool,
    share: float,
    fill: float | None = None,
) -> float:
    """The modelled time of `blocks` tiles of positions by filters with sums of `terms`, gathered `vector` at a time."""
    # operations a nanosecond of one multiprocessor
    plain = 1e3 * traits.teraflops / traits.multiprocessors
    if item == 8:
        plain /= 2
    peak = 1e3 * traits.tensor_teraflops / traits.multiprocessors if tensor else plain
    arithmetic = 2 * cells * filters * terms / (peak * share)
    gather = _GATHER * cells * terms / vector / plain
    loads, stores = (item * n / _CACHE_BANDWIDTH for n in (terms * (cells + filters), cells * filters))
    busiest = math.ceil(blocks / traits.multiprocessors)
    if fill is not None:
        return busiest * (fill + max(arithmetic + gather, loads) + stores)
    waiting = _ALONE if busiest == 1 else _FEW if busiest < 4 else 1.0
    return busiest * waiting * (arithmetic + gather + loads + stores)


def share_of_registers(sums: int) -> float:
    """The share of the peak that threads with so many sums in registers can reach.

    Every product reads its factors from shared memory: the fewer, the larger a thread's tile.
    """
    return 1 / (1 + 2 / math.sqrt(sums))
