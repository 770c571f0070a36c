"""Which tiles and tasks Winograd along rows takes where nothing was tuned.

Amounts, of which :mod:`table` has the cost, with n = m + k - 1 frequencies for m outputs; positions in tails count like
all others:

    tap       multiply-adds of vectors: n / m * taps of depth and height * channels for a vector of outputs
    product   vectors of products on their way through L1 and the inverse transform: n / m
    position  vectors of input, the halo's too, that are copied and transformed, for each frequency
    tail      the same where filters end in a tail, as vectors are copied in parts
    repeat    the same of repeated channels, where groups have several
    row       of these, in channels_first, the rows that are started: each lies in a page of its own
    vector    vectors of outputs: bias, activation and store
    l3        bytes of input and output, where L3 holds both
    memory    cycles for them where it does not, beyond those of the products that are done meanwhile
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tvm_conv3d.compute.llvm.winograd_rows import WinogradRowsVariant, applies, error_bound, groups_of_cells
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.compute.shared.cook_toom import MAX_TAPS_AND_OUTPUTS
from tvm_conv3d.compute.shared.stages import window_extents
from tvm_conv3d.schedules.llvm.costs import streaming
from tvm_conv3d.schedules.llvm.costs.memory import bytes_moved, moved
from tvm_conv3d.schedules.llvm.costs.priced import Priced
from tvm_conv3d.schedules.llvm.costs.table import costs_of, total
from tvm_conv3d.schedules.llvm.costs.tile_rule import TASKS_PER_THREAD, busiest_share, fitting_lanes
from tvm_conv3d.schedules.llvm.costs.winograd import ERROR_LIMIT
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.cpu import CpuTraits

#: Outputs of a tile; longer ones take more than 1.5 s to compile for 7 taps.
_TILES = (2, 4)

#: Rows and columns of the register tiles, for many registers and for few.
_REGISTER_TILES = {32: ((8, 2), (4, 2), (4, 4), (8, 1)), 16: ((4, 1), (4, 2), (2, 2))}

#: Depths and rows, and tiles of a row, in a task, at most.
_DEPTHS, _ROWS, _COLUMNS = (1, 2, 4, 8, 16), (4, 8, 16), (2, 4, 8)


def priced(spec: CanonicalSpec, traits: CpuTraits) -> list[Priced[WinogradRowsVariant]]:
    """The variants within the error limit, the cheapest first; empty where rows can't be transformed."""
    if not applies(spec) or spec.accumulator != "float32" or spec.group_filters >= traits.lanes(spec.accumulator):
        return []
    costs = costs_of(traits, "winograd_rows")
    fitting = (v for v in _candidates(spec, traits) if _fits(spec, traits, v))
    found = [Priced(v, total(costs, amounts(spec, traits, v, {}))) for v in fitting]
    return sorted(found, key=lambda candidate: (candidate.cycles, *_equals(spec, candidate.variant)))


def _equals(s: CanonicalSpec, variant: WinogradRowsVariant) -> tuple[bool, int]:
    """What variants of equal cost are sorted by: in channels_first, whole vectors along the rows of a tile, depth."""
    if s.data_format == CHANNELS_LAST:
        return False, 0
    return variant.tile * variant.columns % variant.lanes != 0, -variant.block[0]


def _candidates(s: CanonicalSpec, traits: CpuTraits) -> Iterator[WinogradRowsVariant]:
    """All tiles within the error limit, in all tasks in which each register tile has valid outputs."""
    lanes = fitting_lanes(traits, s.accumulator, s.filters)
    unrounded, (depth, height, width) = replace(s, dtype=s.accumulator), s.out_size
    for m in _TILES:
        if m + s.kernel[2] > MAX_TAPS_AND_OUTPUTS:
            continue
        if error_bound(unrounded, WinogradRowsVariant(m, (1, 1, 1), lanes, 1, 1)) > ERROR_LIMIT:
            continue
        tiles = -(-width // m)
        for rows, columns in _REGISTER_TILES[min(32, traits.registers)]:
            for d, h, w in itertools.product(_DEPTHS, _ROWS, _COLUMNS):
                if d < 2 * depth and h < height + rows and w < tiles + columns and h % rows == w % columns == 0:
                    variant = WinogradRowsVariant(m, (d, h, w), lanes, rows, columns)
                    few = math.prod(_tasks(s, variant)[:-1]) < TASKS_PER_THREAD * traits.cores
                    yield replace(variant, parallel_blocks=few)


def _tasks(s: CanonicalSpec, variant: WinogradRowsVariant) -> tuple[int, ...]:
    """Samples, tasks along each axis, blocks of filters."""
    return s.batch, *groups_of_cells(s, variant), -(-s.filters // variant.lanes)


def _private_bytes(s: CanonicalSpec, variant: WinogradRowsVariant) -> int:
    """Bytes of the transformed input of a task's block of filters."""
    window = window_extents(s, (*variant.block[:2], 1))[:2]
    frequencies = variant.tile + s.kernel[2] - 1
    return 4 * math.prod(window) * frequencies * variant.block[2] * s.group_channels * variant.lanes


def _fits(s: CanonicalSpec, traits: CpuTraits, variant: WinogradRowsVariant) -> bool:
    # channels_first: longer rows are worth more
    return _private_bytes(s, variant) <= traits.l2 * (1 if s.data_format == CHANNELS_LAST else 2)


def amounts(
    spec: CanonicalSpec, traits: CpuTraits, variant: WinogradRowsVariant, decisions: Mapping[str, int]
) -> dict[str, float]:
    """How much of each the busiest core does; decisions do not matter."""
    s, frequencies = spec, variant.tile + spec.kernel[2] - 1
    window = window_extents(s, (*variant.block[:2], 1))[:2]
    rows = math.prod(variant.block[:2])
    tasks = math.prod(_tasks(s, variant))
    rounds = tasks * busiest_share(tasks, traits) if variant.parallel_blocks else tasks / traits.cores
    each = rounds * variant.block[2]
    copied = each * frequencies * math.prod(window) * s.group_channels
    taps = each * frequencies * rows * math.prod(s.kernel[:2]) * s.group_channels
    done = {
        "tap": taps,
        "product": each * frequencies * rows,
        _position(s, variant): copied,
        "vector": each * rows * variant.tile,
        **moved(bytes_moved(s), traits, taps),
    }
    if s.data_format != CHANNELS_LAST:
        # short stretches of the rows of many channels
        done["row"] = copied / (variant.block[2] * variant.tile)
    return done


def _position(s: CanonicalSpec, variant: WinogradRowsVariant) -> str:
    """What copying and transforming a vector counts as."""
    if s.group_channels > 1:
        return "repeat"
    return "tail" if s.data_format == CHANNELS_LAST and s.filters % variant.lanes else "position"


#: Variants that compete while tuning.
MAX_VARIANTS = 12


def default(spec: CanonicalSpec, traits: CpuTraits) -> tuple[WinogradRowsVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where rows can't be transformed."""
    found = priced(spec, traits)
    if not found:
        return None
    variant = found[0].variant
    stream = streaming.outgrows_caches(spec, traits, variant.lanes, _run(variant))
    return replace(variant, stream=stream), {"depth": 1}


def variants(spec: CanonicalSpec, traits: CpuTraits) -> list[WinogradRowsVariant]:
    """The variants that compete while tuning, the cheapest first; none where rows can't be transformed."""
    found = [candidate.variant for candidate in priced(spec, traits)[:MAX_VARIANTS]]
    streamed = [s for v in found[:2] for s in streaming.streaming(spec, v, v.lanes, _run(v))]
    return [*found, *streamed]


def _run(variant: WinogradRowsVariant) -> int:
    """In channels_first, elements of a row that a register tile stores one after the other."""
    return variant.tile * variant.columns
