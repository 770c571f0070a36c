"""The default tile of the implicit matrix product on tensor cores, where nothing was tuned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

from tvm_conv3d.compute.cuda.implicit_gemm import extents_of, run_of_output
from tvm_conv3d.compute.cuda.tensor_gemm import EDGE, TensorVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.stages import terms_of_part
from tvm_conv3d.schedules.cuda.costs.tile_cost import LAUNCH, cheapest_first, in_parts, is_flat, nanoseconds
from tvm_conv3d.schedules.cuda.tensor_tile import shared_bytes, sums_of_thread, terms_of_sum
from tvm_conv3d.schedules.decisions import largest_divisor
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Cells and filters of a tile, warps along each, and warps along the terms of a step.
TILES = (
    (256, 128, 4, 2, 1),
    (128, 256, 2, 4, 1),
    (128, 128, 2, 2, 1),
    (128, 128, 2, 2, 2),
    (128, 128, 2, 4, 1),
    (256, 64, 4, 1, 1),
    (128, 64, 2, 1, 1),
    (128, 64, 2, 1, 2),
    (64, 128, 1, 2, 1),
    (64, 128, 1, 2, 2),
    (128, 64, 4, 2, 1),
    (64, 128, 2, 4, 1),
    (64, 64, 1, 1, 2),
    (64, 64, 1, 1, 4),
    (64, 64, 2, 2, 1),
    (128, 32, 4, 1, 1),
    (32, 64, 1, 4, 1),
    (64, 32, 4, 1, 1),
    (32, 32, 2, 1, 1),
    (64, 16, 4, 1, 1),
    (16, 32, 1, 2, 1),
)

#: Terms of the reduction that are gathered at a time.
_STEP = 32

#: Sums in a thread's registers, at most: where other warps fill the time of loads, and where loads run ahead.
MOST_SUMS = (64, 128)

#: Steps that are on their way at once: the choices; and the blocks of a multiprocessor from which on further blocks
#: count less than further stages.
_STAGES, _MANY_BLOCKS = (2, 3, 4), 2

#: Nanoseconds until the first load is there, and registers of a thread beside its sums.
_LATENCY, _OTHER_REGISTERS = 1000.0, 90

#: Elements of the least asynchronous copy.
_LEAST_COPIED = 2

#: Channels that are read at once where the input is turned.
_TURNED_AT_ONCE = 8

#: Bytes that shared memory moves in a cycle.
_BYTES_A_CYCLE = 128

#: The share of the peak that `mma.sync` reaches; on Hopper, whose peak is that of other instructions (published
#: measurements, none of ours).
_SHARE, _SHARE_ON_HOPPER = 0.9, 0.62

#: Channels, and filters, of a group from which on tensor cores are taken: fewer leave most of a product to padding.
_MIN_TERMS, _MIN_FILTERS = 16, 9


def candidates(spec: CanonicalSpec, traits: GpuTraits) -> list[TensorVariant]:
    """Variants for `spec`, the cheapest first; none where tensor cores are no help."""
    terms = math.prod(spec.kernel) * spec.group_channels
    if not traits.has_tensor_cores(spec.dtype) or terms < _MIN_TERMS or spec.set_filters < _MIN_FILTERS:
        return []

    # cuts are compared as they will run: copies ahead leave a tile alone on its multiprocessor less to wait for
    def price(variant: TensorVariant) -> float:
        staged = _staged(spec, traits, variant)
        return _nanoseconds(spec, traits, staged) if _is_possible(spec, traits, staged) else math.inf

    costs: dict[TensorVariant, float] = {}
    may_turn = spec.data_format == CHANNELS_FIRST and spec.group_channels % _TURNED_AT_ONCE == 0
    for (cells, filters, *along, along_terms), turned in itertools.product(TILES, (True, False)[not may_turn :]):
        step = max(_STEP, EDGE * along_terms)
        variant = TensorVariant(cells, filters, step, along[0], along[1], turned=turned, warps_terms=along_terms)
        found = in_parts(spec, traits, fitted(spec, variant), price)
        costs |= {_staged(spec, traits, cut): cost for cut, cost in found.items() if cost < math.inf}
    return [variant for variant, _ in cheapest_first(costs)]


def amounts(
    spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """The modelled nanoseconds of a plan."""
    return {"products": _nanoseconds(spec, traits, variant)}


def _nanoseconds(spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant) -> float:
    """Each warp reads its factors from shared memory: the fewer, the larger its tile."""
    fragments = variant.warps_filters * variant.cells + variant.warps_cells * variant.filters
    bandwidth = _BYTES_A_CYCLE * traits.gigahertz
    # of one term: what is read and was written, and what is multiplied
    moved = 2 * (fragments + variant.cells + variant.filters) / bandwidth
    peak = 1e3 * traits.tensor_teraflops / traits.multiprocessors
    multiplied = 2 * variant.cells * variant.filters / peak
    reached = multiplied / (_SHARE_ON_HOPPER if traits.arch >= 90 else _SHARE)
    turning = LAUNCH + 2 * 2 * math.prod(spec.input_shape) / traits.gigabytes if variant.turned else 0.0
    share, fill = multiplied / (reached + moved), None
    if variant.stages > 1:
        share, fill = multiplied / max(reached, moved), _LATENCY / max(1, _blocks(spec, traits, variant))
        # sums that other warps have of the same elements are written and read
        fill += 2 * 4 * (variant.warps_terms - 1) * variant.cells * variant.filters / bandwidth
    return turning + nanoseconds(spec, traits, variant, item=2, tensor=True, share=share, fill=fill)


def _blocks(spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant) -> int:
    """Blocks that lie on a multiprocessor together, by their shared memory and the registers of their sums."""
    threads = 32 * variant.warps
    registers = threads * (_OTHER_REGISTERS + sums_of_thread(spec, variant))
    return min(traits.shared_per_multiprocessor // shared_bytes(spec, variant), traits.registers // registers)


def _staged(spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant) -> TensorVariant:
    """`variant` with the most stages that leave a multiprocessor as many blocks as two stages do."""
    variant = fitted(spec, variant)
    steps = extents_of(spec, variant).turns // variant.parts
    of_part = terms_of_part(terms_of_sum(spec, variant), on_gpu=True) * variant.warps_terms // variant.step
    # copies are of 4 bytes at least, and drain at the end of each part of a long sum
    if variant.vector < _LEAST_COPIED or 4 * largest_divisor(steps, of_part) < min(steps, of_part):
        return variant

    def blocks(stages: int) -> int:
        return _blocks(spec, traits, replace(variant, stages=stages))

    fitting = [stages for stages in _STAGES if stages <= steps and blocks(stages) >= min(blocks(2), _MANY_BLOCKS)]
    return replace(variant, stages=max(fitting, default=1))


def fitted(spec: CanonicalSpec, variant: TensorVariant) -> TensorVariant:
    """`variant` with the reduction, the vectors of channels and of output elements that suit `spec`."""
    last = spec.data_format == CHANNELS_LAST or variant.turned
    vector = max(v for v in (1, 2, 4, 8) if spec.group_channels % v == 0 and v <= (8 if last else 1))
    # 16 bytes of the output, or of the sums of a part
    store = max(v for v in (1, 2, 4, 8) if run_of_output(spec) % v == 0 and (v <= 4 or variant.parts == 1))
    return replace(variant, flat=is_flat(spec, variant.step), vector=vector, store=store)


#: Variants that compete while tuning; of those whose copies run ahead, as many of the best take part with these terms
#: of a step, and all numbers of stages.
MAX_VARIANTS = 10
_VARIED, _STEPS = 2, (32, 64)


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[TensorVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where tensor cores are no help."""
    found = candidates(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[TensorVariant]:
    """The variants that compete while tuning, the default's first; and the best of them with other steps and stages."""
    found = candidates(spec, traits)[:MAX_VARIANTS]
    best = [variant for variant in found if variant.stages > 1][:_VARIED]
    others = (
        replace(fitted(spec, replace(variant, step=step)), stages=stages)
        for variant, step, stages in itertools.product(best, _STEPS, _STAGES)
    )
    return list(dict.fromkeys([*found, *(v for v in others if _is_possible(spec, traits, v))]))


def _is_possible(spec: CanonicalSpec, traits: GpuTraits, variant: TensorVariant) -> bool:
    """Whether a GPU has the registers and the shared memory, a step a share for each warp, the sum as many steps."""
    e = extents_of(spec, variant)
    fits = sums_of_thread(spec, variant) <= MOST_SUMS[variant.stages > 1]
    fits = fits and shared_bytes(spec, variant) <= traits.shared_opt_in
    fits = fits and variant.step >= variant.warps_terms * EDGE
    return fits and e.turns % variant.parts == 0 and variant.stages <= e.turns // variant.parts
