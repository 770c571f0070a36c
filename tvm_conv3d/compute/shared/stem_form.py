"""What the code of :mod:`tvm_conv3d.compute.llvm.stem_gradient` depends on."""

from __future__ import annotations

from typing import NamedTuple

from tvm_conv3d.spec import Triple


class Form(NamedTuple):
    """What the code depends on.

    Attributes:
        kernel: taps along depth, height and width.
        channels: of the input.
        lanes: of a vector.
        together: rows of the kernel's gradient whose sums are in registers at once.
    """

    kernel: Triple
    channels: int
    lanes: int
    together: int

    @property
    def rows(self) -> int:
        """Of the kernel's gradient: taps and channels, each a row of filters."""
        depth, height, width = self.kernel
        return depth * height * width * self.channels

    @property
    def functions(self) -> dict[str, range]:
        """The functions of the module, and which rows each makes."""
        starts = range(0, self.rows, self.together)
        return {f"rows_{first}": range(first, min(first + self.together, self.rows)) for first in starts}
