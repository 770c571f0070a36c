"""A plan's kernels on a GPU, as the tuner calls and times them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.compute.shared.argument import OUT, PACK
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.runtime.cuda.kernels import Kernels, Memory, pack
from tvm_conv3d.runtime.loader import Loaded


@dataclass
class GpuKernel:
    """Kernels and the memory they are called with, on the first GPU.

    Attributes:
        kernels: of the plan.
        memory: arguments, by name.
        scratch: of the workspaces.
    """

    kernels: Kernels
    memory: Mapping[str, Memory]
    scratch: Memory

    #: There are no flags: what a tile of Winograd's can't compute, its kernel computes directly.
    trusted = True

    @classmethod
    def of(cls, loaded: Loaded, arrays: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> GpuKernel:
        """With copies of the arguments on the GPU, and the weights packed there.

        Args:
            loaded: the plan's code.
            arrays: input and output, by name.
            weights: as the code's packing takes them, by name.
        """
        kernels: Kernels = loaded.main.code
        memory = {name: Memory.holding(0, array) for name, array in arrays.items()}
        memory.update(pack(0, loaded.functions[PACK], weights))
        return cls(kernels, memory, Memory(0, kernels.scratch))

    def __call__(self) -> None:
        """One call, waited for: the time of the launch is counted, too."""
        addresses = {name: memory.address for name, memory in self.memory.items()}
        self.kernels(0, 0, addresses | self.kernels.workspaces(self.scratch.address))
        driver.get().synchronize(0, 0)

    def fetch(self, out: np.ndarray) -> None:
        """Brings the last call's result into `out`."""
        driver.get().download(0, out, self.memory[OUT].address)
