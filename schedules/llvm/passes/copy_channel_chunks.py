"""Vectorized copies of channels that do not fill vectors, in chunks that are contiguous in the input and in the copy.

Where taps or phases became channels, the channels of a gathered position are those of some input positions, one after
the other. As one loop, each element would be copied by itself, its index found by divisions. A schedule marks that
loop; it becomes one over channel chunks, each copied by vectors (:mod:`transpose_copies`). Of an input position all
channels are valid or none, so that a chunk is bounded by whole positions.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, sym, tirx
from tvm.s_tir import Schedule

from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.schedules.decisions import LoopRV
from tvm_conv3d.schedules.llvm.passes import marks, transpose_copies
from tvm_conv3d.schedules.llvm.passes.llvm_functions import with_calls
from tvm_conv3d.target.cpu import CpuTraits

#: Annotation of a loop over the channels of a gathered position: elements of a channel chunk, elements of an input
#: position, and how many chunks there are.
CHUNKS = "tvm_conv3d.channel_chunks"


def mark(sch: Schedule, channels: LoopRV, chunk: int, position: int, count: int) -> None:
    """Marks a loop over the channels of a gathered position.

    Args:
        sch: the schedule.
        channels: the loop; behind all chunks it stores zeros.
        chunk: contiguous elements, those of some input positions.
        position: elements of an input position.
        count: chunks.
    """
    sch.annotate(channels, CHUNKS, [chunk, position, count])


@marks.function_pass("copy_channel_chunks", CHUNKS)
def rewrite(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function lowered to loops, with marked copies as calls, for the target in whose scope this runs."""
    return with_calls(function, (CHUNKS,), calls)


def calls(loop: tirx.For, traits: CpuTraits, texts: dict[str, str]) -> Any:
    """Replaces a marked loop; the functions that it calls are added to `texts`."""
    chunk, position, count = map(int, loop.annotations[CHUNKS])
    if not isinstance(loop.body, tirx.BufferStore):
        return marks.without(loop, CHUNKS)
    number, within = ir.Var("chunk", "int32"), ir.Var("within", "int32")
    analyzer = sym.Analyzer()
    analyzer.bind(number, ir.Range(0, count))
    analyzer.bind(within, ir.Range(0, chunk))
    store = index_analysis.put_all(loop.body, {loop.loop_var: number * chunk + within})
    store = tirx.BufferStore(
        store.buffer, analyzer.simplify(store.value), [analyzer.simplify(index) for index in store.indices]
    )
    row = tirx.For(within, 0, chunk, tirx.ForKind.SERIAL, store, annotations={transpose_copies.COPIES: 1})
    copied = transpose_copies.calls(row, traits, texts, position)
    done = [tirx.For(number, 0, count, tirx.ForKind.SERIAL, copied)]
    rest = int(loop.extent) - chunk * count
    if rest:
        var, zero = loop.loop_var, tirx.const(0, str(store.buffer.dtype))
        behind = tirx.BufferStore(store.buffer, zero, loop.body.indices)
        done.append(tirx.For(var, tirx.const(chunk * count, str(var.ty.dtype)), rest, tirx.ForKind.SERIAL, behind))
    return index_analysis.one_statement(done)
