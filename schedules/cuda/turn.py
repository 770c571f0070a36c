"""The kernel that brings an input of channels_first into channels_last: blocks turn tiles in shared memory."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvm_conv3d.compute.cuda.tensor_gemm import TURNED_POSITIONS, vector_of_positions
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.schedules.cuda.common import spread_over_threads, unroll
from tvm_conv3d.schedules.decisions import divisors

#: Channels that a thread stores at once: 16 bytes.
_VECTOR = 8

#: Channels of a tile, and threads of a block, at most.
_MAX_CHANNELS, _MAX_THREADS = 64, 256


def turn(sch: Schedule, spec: CanonicalSpec) -> None:
    """Schedules the stages `slab` and `turned` of `compute.tensor_gemm`; channels are a multiple of 8."""
    channels = max(d for d in divisors(spec.channels) if d <= _MAX_CHANNELS and d % _VECTOR == 0)
    stores = TURNED_POSITIONS * channels // _VECTOR
    threads = max(d for d in divisors(stores) if d <= _MAX_THREADS and d % 32 == 0)
    turned, slab = sch.get_sblock("turned"), sch.get_sblock("slab")
    # vectors are put together in registers: TVM has no vector of 2-byte elements from several places
    registers = sch.cache_read(turned, 0, "local")
    n, p, c = sch.get_loops(turned)
    p, position = sch.split(p, [None, TURNED_POSITIONS])
    c, channel, lane = sch.split(c, [None, channels // _VECTOR, _VECTOR])
    sch.reorder(n, p, c, position, channel, lane)
    block = sch.fuse(n, p, c)
    sch.bind(block, "blockIdx.x")
    _, thread = sch.split(sch.fuse(position, channel), [None, threads])
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lane)
    sch.compute_at(registers, thread, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(registers)[-2:])
    sch.set_scope(slab, 0, "shared.dyn")
    sch.compute_at(slab, block, preserve_unit_loops=True)
    # rows begin in neighbouring banks, as stores read across them
    sch.storage_align(slab, 0, -2, 32, 2)
    channel, position = sch.get_loops(slab)[-2:]
    position, lane = sch.split(position, [None, vector_of_positions(spec)])
    spread_over_threads(sch, (channel, position), threads, lane)
