"""Transposed convolutions of all kinds of geometries, for CPUs and GPUs alike."""

from __future__ import annotations

from typing import Any

from tvm_conv3d.spec import DATA_GRADIENT, Conv3DSpec, Pads, Triple

ONE: Triple = (1, 1, 1)


def gradient(
    cells: Triple,
    channels: int,
    filters: int,
    kernel: Triple,
    strides: Triple = ONE,
    *,
    before: Triple = (0, 0, 0),
    open_cells: Triple = (0, 0, 0),
    dilation: Triple = ONE,
    **more: Any,
) -> Conv3DSpec:
    """The transposed convolution of `cells` cells, cropped by `before` on both sides, with `open_cells` behind."""
    size, pads = [], []
    for n, k, s, b, o, d in zip(cells, kernel, strides, before, open_cells, dilation, strict=True):
        whole = (n - 1) * s + (k - 1) * d + 1
        size.append(whole - 2 * b + o)
        pads.append(Pads(b, whole - size[-1] - b))
    return Conv3DSpec(
        1, tuple(size), channels, filters, kernel, strides, dilation, tuple(pads), direction=DATA_GRADIENT, **more
    )  # type: ignore[arg-type]


#: Kernel, strides, pad before, cells that strides leave open or that make up for a large pad.
GEOMETRIES = [
    ((3, 3, 3), ONE, ONE, (0, 0, 0)),
    ((3, 1, 2), ONE, (3, -2, 0), (4, 0, 0)),
    ((1, 1, 1), ONE, (0, 0, 0), (0, 0, 0)),
    ((2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0)),
    ((3, 3, 3), (2, 2, 2), ONE, ONE),
    ((3, 3, 3), (2, 2, 2), ONE, (0, 0, 0)),
    ((4, 4, 4), (2, 2, 2), ONE, (0, 0, 0)),
    ((1, 2, 2), (1, 2, 2), (0, 0, 0), (0, 0, 0)),
    ((3, 2, 1), (1, 1, 2), (1, 0, 0), (0, 0, 1)),
    ((1, 2, 3), (3, 3, 3), (0, 0, 0), (2, 1, 0)),
    ((4, 3, 2), (3, 2, 1), (4, -1, 3), (3, 0, 3)),
]
