"""Which variants of the window kernel there are on a GPU, and which one is taken untuned."""

from __future__ import annotations

import math

from tvm_conv3d.compute.cuda.window import WindowVariant
from tvm_conv3d.compute.shared.canonical import CanonicalSpec
from tvm_conv3d.spec import CHANNELS_LAST
from tvm_conv3d.target.gpu import GpuTraits

#: Filters of a group up to which a matrix product would compute mostly padding: of one group, and of several.
_FEW_FILTERS, _FEW_OF_GROUP = 8, 15


#: Channels of one group of several, below which the same holds of its reduction.
_FEW_CHANNELS = 8


#: Cells of the windows that one thread holds at a time.
_MAX_HELD = 48


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
    # positions along the axis that is not spread over neighbouring threads
    axis = 2 if last else 1
    found = []
    for cells in (4, 8, 2, 1):
        variant = WindowVariant(1, cells) if last else WindowVariant(cells, 1)
        threads = math.prod(spec.output_shape) / cells
        held = (cells - 1) * spec.strides[axis] + spec.window[axis]
        enough = threads >= traits.multiprocessors * traits.threads_per_multiprocessor / 4
        overlaps = spec.window[axis] > spec.strides[axis] and spec.dilation[axis] == 1
        wasted = -(-spec.out_size[axis] // cells) * cells / spec.out_size[axis]
        if cells == 1 or (enough and overlaps and held <= _MAX_HELD and wasted <= 1.34):
            found.append(variant)
    return found
