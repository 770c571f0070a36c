"""Design space of the convolution by windows in registers: few filters a group, depthwise included."""

from __future__ import annotations

import math

from tvm import IRModule
from tvm.s_tir import Schedule

from tvm_conv3d.compute.canonical import CanonicalSpec
from tvm_conv3d.compute.cut import cut_output
from tvm_conv3d.compute.window import WindowVariant
from tvm_conv3d.cuda.architectures import GpuTraits
from tvm_conv3d.schedules import long_sums
from tvm_conv3d.schedules.cuda.common import unroll, unroll_by_pragma
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.spec import CHANNELS_LAST

#: Filters of a group up to which a matrix product would compute mostly padding: of one group, and of several.
_FEW_FILTERS, _FEW_OF_GROUP = 8, 15

#: Channels of one group of several, below which the same holds of its reduction.
_FEW_CHANNELS = 8

#: Taps of a slice up to which it is unrolled whole.
_MOST_UNROLLED = 25

#: Cells of the windows that one thread holds at a time.
_MOST_HELD = 48


def default(spec: CanonicalSpec, traits: GpuTraits) -> tuple[WindowVariant, dict[str, int]] | None:
    """The variant and the decisions taken where nothing was tuned; None where groups have many filters."""
    found = variants(spec, traits)
    return (found[0], {}) if found else None


def variants(spec: CanonicalSpec, traits: GpuTraits) -> list[WindowVariant]:
    """The variants that compete while tuning, the default's first; none where groups have many filters."""
    few = spec.group_filters <= (_FEW_FILTERS if spec.groups == 1 else _FEW_OF_GROUP)
    if not few and (spec.groups == 1 or spec.group_channels >= _FEW_CHANNELS):
        return []
    last = spec.data_format == CHANNELS_LAST
    # cells along the axis that is not spread over neighbouring threads
    axis = 2 if last else 1
    found = []
    for cells in (4, 8, 2, 1):
        variant = WindowVariant(1, cells) if last else WindowVariant(cells, 1)
        threads = math.prod(spec.output_shape) / cells
        held = (cells - 1) * spec.strides[axis] + spec.window[axis]
        enough = threads >= traits.multiprocessors * traits.threads_per_multiprocessor / 4
        overlaps = spec.window[axis] > spec.strides[axis] and spec.dilation[axis] == 1
        wasted = -(-spec.out_size[axis] // cells) * cells / spec.out_size[axis]
        if cells == 1 or (enough and overlaps and held <= _MOST_HELD and wasted <= 1.34):
            found.append(variant)
    return found


def apply(sch: Schedule, spec: CanonicalSpec, variant: WindowVariant, decide: Decisions) -> None:
    """Schedules `compute.window.declare(spec, variant)`.

    Decisions: `unroll`: channels that are unrolled.
    """
    out = sch.get_sblock("out")
    block, thread, i, j = sch.get_loops(out)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    unroll_by_pragma(sch, block)
    unroll(sch, (i, j))
    conv = sch.get_sblock("conv")
    sch.set_scope(conv, 0, "local")
    sch.compute_at(conv, thread, preserve_unit_loops=True)
    i, j, tap_d, channel, tap_h, tap_w = sch.get_loops(conv)[-6:]
    channel, few = decide.tile("unroll", channel, default=1, limit=4)
    sch.reorder(tap_d, channel, few, tap_h, tap_w, i, j)
    sch.unroll(few)
    unroll(sch, (i, j))
    _, height, width = spec.kernel
    whole = height * width <= _MOST_UNROLLED
    # taps of very wide kernels stay loops
    unroll(sch, (tap_h, tap_w) if whole else (tap_w,) if width <= _MOST_UNROLLED else ())
    window = sch.get_sblock("window")
    sch.set_scope(window, 0, "local")
    at = few if whole or variant.rows > 1 else tap_h if variant.columns > 1 or width <= _MOST_UNROLLED else tap_w
    sch.compute_at(window, at, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(window)[-2:])
    start = sch.decompose_reduction(conv, tap_d)
    unroll(sch, sch.get_loops(start)[-2:])


def finish(module: IRModule, spec: CanonicalSpec) -> IRModule:
    """What is changed after scheduling: the output gets the user's layout."""
    return long_sums.in_parts(cut_output(module), on_gpu=True)
