"""A plan's kernels on a GPU, as the tuner calls and times them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.cuda import driver
from tvm_conv3d.cuda.executor import Kernels, Memory


@dataclass
class GpuKernel:
    """Kernels and the memory they are called with, on the first GPU.

    Attributes:
        kernels: of the plan.
        memory: input, weights, bias, output and workspaces.
    """

    kernels: Kernels
    memory: Sequence[Memory]

    #: There are no flags: what a tile of Winograd's can't compute, its kernel computes directly.
    trusted = True

    @classmethod
    def of(cls, kernels: Kernels, arrays: Sequence[np.ndarray]) -> GpuKernel:
        """With copies of the arrays on the GPU."""
        copies = [Memory.holding(0, array) for array in arrays]
        return cls(kernels, copies + [Memory(0, size) for size in kernels.workspaces])

    def __call__(self) -> None:
        """One call, waited for: the time of the launch is counted, too."""
        self.kernels(0, 0, [memory.address for memory in self.memory])
        driver.get().synchronize(0, 0)

    def fetch(self, out: np.ndarray) -> None:
        """Brings the last call's result into `out`."""
        driver.get().download(0, out, self.memory[3].address)
