"""Which variants of the depthwise convolution there are on a CPU, what they cost, and which one is taken untuned.

Amounts, of which :mod:`table` has the cost:

    step       cycles that register tiles take of the vector units and load ports, tap by tap
    step_tail  the same where rows end within a vector, which is stored in part
    copy       vectors of input that a task copies
    strided    the same where columns are strided, whose phases are copied apart
    store      vectors of output
    l3         bytes of input and output, where L3 holds both
    memory     cycles for them where it does not, beyond those of the products that are done meanwhile
    task       tasks
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tvm_conv3d.compute.llvm.depthwise import DepthwiseVariant, applies, period
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.decisions import divisors
from tvm_conv3d.schedules.llvm.costs import streaming
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved, moved
from tvm_conv3d.schedules.llvm.costs.table import costs_of, total
from tvm_conv3d.schedules.llvm.costs.tile_rule import TASKS_PER_THREAD, busiest_share
from tvm_conv3d.target.cpu import CpuTraits

#: Cycles of loading a vector of input, most of which cross a cache line.
_LOAD = 3.0


#: Variants that compete while tuning.
_MAX_VARIANTS = 10


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[DepthwiseVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where channels fill whole vectors."""
    if not applies(spec) or spec.channels % traits.lanes(spec.accumulator) == 0:
        return None
    cheapest = _candidates(spec, traits)[0]
    return cheapest.variant, {"depth": cheapest.depth, "rows": cheapest.row_tiles}


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[DepthwiseVariant]:
    """The variants that compete while tuning, the cheapest first; none where the layer is not depthwise."""
    if not applies(spec):
        return []
    candidates = (candidate.variant for candidate in _candidates(spec, traits))
    found = list(itertools.islice(dict.fromkeys(candidates), _MAX_VARIANTS))
    return [*found, *(streamed for variant in found[:2] for streamed in streaming.streaming(spec, variant, 1))]


@dataclass(frozen=True)
class _Candidate:
    """A variant with the depths and row tiles of a task."""

    variant: DepthwiseVariant
    depth: int
    row_tiles: int


def _candidates(s: CanonicalSpec, traits: CpuTraits) -> list[_Candidate]:
    """All tiles and tasks, the cheapest first; last those whose copy overflows half of L2 or that are too few."""
    lanes = traits.lanes(s.accumulator)
    depth, height, width = s.out_size
    row_parts = list(dict.fromkeys(_row_parts(s, lanes, -(-width * s.channels // lanes))))

    found = [
        _Candidate(DepthwiseVariant(lanes, rows, vectors), d, h)
        for rows in range(1, max(1, min(height, _most_rows(traits))) + 1)
        for d, h in itertools.product(divisors(depth), divisors(-(-height // rows)))
        for vectors in row_parts
    ]
    costs = costs_of(traits, "depthwise")

    def cost(candidate: _Candidate) -> tuple[bool, bool, float, int]:
        too_large = _copied_vectors(s, candidate) * traits.vector_bits // 8 > traits.l2 // 2
        too_few = _tasks(s, candidate) < TASKS_PER_THREAD * traits.cores
        return too_few, too_large, total(costs, _amounts(s, traits, candidate)), -candidate.variant.vectors

    return sorted(found, key=cost)


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: DepthwiseVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does."""
    return _amounts(spec, traits, _Candidate(variant, decisions["depth"], decisions["rows"]))


def _amounts(s: CanonicalSpec, traits: CpuTraits, candidate: _Candidate) -> dict[str, float]:
    variant, count = candidate.variant, _tasks(s, candidate)
    of_core = count * busiest_share(count, traits)
    tiles = of_core * candidate.depth * candidate.row_tiles * variant.vectors
    whole = s.out_size[2] * s.channels % (variant.vectors * variant.lanes) == 0
    step = tiles * s.kernel[0] * s.kernel[2] * _step(s, traits, variant.rows)
    return {
        "step" if whole else "step_tail": step,
        "copy" if s.strides[2] == 1 else "strided": of_core * _copied_vectors(s, candidate),
        "store": tiles * variant.rows,
        **moved(bytes_moved(s), traits, step),
        "task": of_core,
    }


def _tasks(s: CanonicalSpec, candidate: _Candidate) -> int:
    variant, (depth, height, width) = candidate.variant, s.out_size
    parts = -(-width * s.channels // (variant.vectors * variant.lanes))
    return s.batch * (depth // candidate.depth) * (-(-height // variant.rows) // candidate.row_tiles) * parts


def _most_rows(traits: CpuTraits) -> int:
    return 12 if traits.registers >= 32 else 6


def _step(s: CanonicalSpec, traits: CpuTraits, rows: int) -> float:
    """Cycles of a register tile for each tap of depth and width."""
    taps = s.kernel[1]
    loaded = min((rows - 1) * s.strides[1] + taps, rows * taps)
    # sums and weights that find no register are loaded and stored each time
    spilled = max(0, rows + taps + 2 - traits.registers)
    return max(rows * taps, _LOAD * loaded + taps) + 2 * taps * spilled


def _copied_vectors(s: CanonicalSpec, candidate: _Candidate) -> float:
    """Vectors of input that a task copies."""
    variant = candidate.variant
    along_d = (candidate.depth - 1) * s.strides[0] + s.window[0]
    along_h = (candidate.row_tiles * variant.rows - 1) * s.strides[1] + s.window[1]
    along_w = variant.vectors + (s.window[2] - 1) // s.strides[2] * s.channels / variant.lanes
    return along_d * along_h * along_w * s.strides[2]


def _row_parts(s: CanonicalSpec, lanes: int, whole: int) -> Iterator[int]:
    """Vectors of a row that a task may take: all, or equal parts, of whole positions where columns are strided."""
    unit = period(s, lanes) if s.strides[2] > 1 else 1
    yield whole
    for parts in range(2, min(whole, 32) + 1):
        size = -(-math.ceil(whole / parts) // unit) * unit
        if size < whole:
            yield size
