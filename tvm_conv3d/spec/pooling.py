"""What pooling computes: a frozen description of one max or average pooling in three axes, as PyTorch defines it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tvm_conv3d.spec import Triple, check_triple

MAX, AVERAGE = "max", "average"

KINDS = (MAX, AVERAGE)


@dataclass(frozen=True)
class Pooling:
    """One pooling of `torch.nn.functional.max_pool3d` or `avg_pool3d`.

    Attributes:
        kind: "max" or "average".
        size: input depth, height, width in cells.
        kernel, strides, dilation: cells of a window, step of the window, distance of its cells, per axis.
        pads: cells before and after each axis that no maximum sees, and that are zeros to an average.
        ceil_mode: a last window may reach over the end, if it begins before it.
        count_include_pad: an average counts the cells of the padding, too.
        divisor: what an average's sum is divided by in place of the number of its cells.

    Raises:
        ValueError: a value is out of the range that torch allows for any kernel, or there would be no window.
    """

    kind: str
    size: Triple
    kernel: Triple
    strides: Triple
    pads: Triple
    dilation: Triple = (1, 1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: {self.kind!r}")
        for name in ("size", "kernel", "strides", "dilation"):
            check_triple(name, getattr(self, name))
        check_triple("pads", self.pads, 0)
        if any(2 * pad > k for pad, k in zip(self.pads, self.kernel, strict=True)):
            raise ValueError(
                f"`pads` must be at most half of the kernel. Received: pads={self.pads}, kernel={self.kernel}"
            )
        if self.kind == AVERAGE and self.dilation != (1, 1, 1):
            raise ValueError(f"An average's window has no dilation. Received: dilation={self.dilation}")
        if self.divisor is not None and (self.kind == MAX or self.divisor == 0):
            raise ValueError(
                f"`divisor` belongs to averages, and must not be 0. Received: kind={self.kind!r}, "
                f"divisor={self.divisor}"
            )
        if min(self.out_size) < 1:
            raise ValueError(
                f"The input is too small: size {self.size} with pads {self.pads} holds no window of kernel "
                f"{self.kernel} and dilation {self.dilation}."
            )

    @functools.cached_property
    def out_size(self) -> Triple:
        """Windows along depth, height and width."""
        d, h, w = (self._windows(axis) for axis in range(3))
        return d, h, w

    def _windows(self, axis: int) -> int:
        size, stride, pad = self.size[axis], self.strides[axis], self.pads[axis]
        covered = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        windows = (size + 2 * pad - covered + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        # the last one must begin before the padding behind
        return windows - 1 if self.ceil_mode and (windows - 1) * stride >= size + pad else windows
