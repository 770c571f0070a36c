"""A transposed convolution as an ordinary one.

By definition it is a convolution of the zero-stuffed input (stride - 1 zeros between cells) with the flipped kernel.
Seven of eight products of stride 2 would have a stuffed zero as a factor; so the taps are sorted by the phase of the
output cell that they reach: phase r of the output is a convolution of the input itself. All phases together are one
convolution with stride_d * stride_h * stride_w * filters filters, whose output is then woven into the finer grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.spec import NO_PADS, Pads, Triple, same_padding


@dataclass(frozen=True, eq=False)
class Phases:
    """A transposed convolution, rewritten.

    Attributes:
        kernel: (taps_d, taps_h, taps_w, channels, phases * filters), phases in the order of (d, h, w).
        pads: zeros to put around the input; the convolution itself is `valid`.
        strides: upsampling per axis.
    """

    kernel: np.ndarray
    pads: tuple[Pads, Pads, Pads]
    strides: Triple

    def weave(self, phases: np.ndarray, index: int, out: np.ndarray) -> None:
        """Sort the cells of one output slice into place.

        Args:
            phases: the convolution's output for one sample, (d, h, w, phases * filters).
            index: which slice along the depth of the result.
            out: that slice, (H, W, filters).
        """
        cell, phase = divmod(index, self.strides[0])
        height, width = phases.shape[1:3]
        cells = as_cells(phases[cell].reshape(height, width, *self.strides, out.shape[-1]))[:, :, phase]
        rows = cells.transpose(0, 2, 1, 3)
        target = as_cells(out)
        if target.size == rows.size:
            target.reshape(rows.shape)[...] = rows
        else:
            # The last phases of a size that the strides do not divide reach beyond the output.
            whole = rows.reshape(height * self.strides[1], width * self.strides[2])
            target[...] = whole[: target.shape[0], : target.shape[1]]


def as_cells(array: np.ndarray) -> np.ndarray:
    """A view without the axis of channels: NumPy moves opaque cells twice as fast as the numbers in them."""
    return array.view(np.dtype((np.void, array.itemsize * array.shape[-1])))[..., 0]


def to_phases(kernel: np.ndarray, strides: Triple, padding: str, size: Triple, out_size: Triple) -> Phases:
    """Rewrite a transposed convolution.

    Args:
        kernel: (kd, kh, kw, filters, channels), as TensorFlow and Keras store it.
        strides: upsampling per axis.
        padding: `same` or `valid`, that of the convolution whose gradient this is.
        size: depth, height, width of the input.
        out_size: the same of the output.

    Raises:
        DemoError: no convolution with these arguments takes `out_size` to `size`.
    """
    taps: Triple = kernel.shape[:3]
    pads = same_padding(out_size, taps, strides, (1, 1, 1)) if padding == "same" else NO_PADS
    forward = tuple((o + sum(p) - k) // s + 1 for o, p, k, s in zip(out_size, pads, taps, strides, strict=True))
    if forward != tuple(size):
        raise DemoError(f"A `{padding}` convolution takes {out_size} to {forward}, not to the input's {size}.")
    axes = [_axis(k, s, p.before) for k, s, p in zip(taps, strides, pads, strict=True)]
    lows = [min(offset for _, _, offset in axis) for axis in axes]
    highs = [max(offset for _, _, offset in axis) for axis in axes]
    filters, channels = kernel.shape[3:]
    window = tuple(high - low + 1 for low, high in zip(lows, highs, strict=True))
    dense = np.zeros((*window, channels, *strides, filters), kernel.dtype)
    for moves in itertools.product(*axes):
        tap, phase, offset = zip(*moves, strict=True)
        place = tuple(o - low for o, low in zip(offset, lows, strict=True))
        dense[(*place, slice(None), *phase)] = kernel[tap].T
    depth, height, width = (
        Pads(-low, -(-o // s) + high - n)
        for low, high, o, s, n in zip(lows, highs, out_size, strides, size, strict=True)
    )
    return Phases(dense.reshape(*window, channels, -1), (depth, height, width), strides)


def _axis(taps: int, stride: int, before: int) -> list[tuple[int, int, int]]:
    """(tap, phase, offset): output cell j * stride + phase takes `tap` times input cell j + offset."""
    return [
        (tap, phase, (phase + before - tap) // stride)
        for phase in range(stride)
        for tap in range(taps)
        if (phase + before - tap) % stride == 0
    ]
