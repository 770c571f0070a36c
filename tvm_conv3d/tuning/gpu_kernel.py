"""A plan's kernels on a GPU, as the tuner calls and times them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_conv3d.compute.shared.argument import PACK, ROLES
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.runtime.cuda.kernels import Kernels, Memory, pack
from tvm_conv3d.runtime.loader import Loaded

#: How many times the second-level cache all sets of buffers are that timed calls take turns with: what a call reads and
#: writes has left the cache when its turn comes again.
_CACHES = 2.5

#: Sets of buffers, at most.
_MAX_SETS = 48


@dataclass(eq=False)
class GpuKernel:
    """Kernels and the memory they are called with, on the first GPU.

    Attributes:
        kernels: of the plan.
        arrays: all but packed weights, by name.
        weights: packed ones, by name.
    """

    kernels: Kernels
    arrays: Mapping[str, np.ndarray]
    weights: Mapping[str, Memory]

    #: There are no flags: what a tile of Winograd's can't compute, its kernel computes directly.
    trusted = True

    @classmethod
    def of(cls, loaded: Loaded, arrays: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> GpuKernel:
        """With the weights packed on the GPU, where the code takes some.

        Args:
            loaded: the plan's code.
            arrays: what it reads and fills, by name.
            weights: as the code's packing takes them, by name.
        """
        packing = loaded.functions.get(PACK)
        return cls(loaded.main.code, arrays, pack(0, packing, weights) if packing else {})

    def __call__(self) -> None:
        """One call, waited for."""
        self.kernels(0, 0, self._addresses(self._first))
        driver.get().synchronize(0, 0)

    def fetch(self, results: Mapping[str, np.ndarray]) -> None:
        """Brings the last call's results into arrays, by name."""
        for name, array in results.items():
            driver.get().download(0, array, self._first[name].address)

    def seconds(self, count: int) -> float:
        """Seconds of one call, the mean of `count` that are queued between two events.

        Calls take turns with sets of buffers that together outgrow the cache, as calls of a network find it.
        """
        sets = [self._addresses(memory) for memory in self._sets]
        return self.kernels.elapsed(0, [sets[i % len(sets)] for i in range(count)]) / count

    @functools.cached_property
    def _first(self) -> Mapping[str, Memory]:
        return self._copied()

    @functools.cached_property
    def _sets(self) -> list[Mapping[str, Memory]]:
        size = sum(memory.size for memory in self._first.values())
        number = math.ceil(_CACHES * driver.device(0).cache / size)
        return [self._first, *(self._copied() for _ in range(min(number, _MAX_SETS) - 1))]

    @functools.cached_property
    def _scratch(self) -> Memory:
        return Memory(0, self.kernels.scratch)

    def _copied(self) -> Mapping[str, Memory]:
        """The arrays on the GPU; NaN for what is filled, in which nothing passes for computed."""
        return {
            name: Memory.holding(0, np.full_like(array, np.nan) if ROLES[name] == "output" else array)
            for name, array in self.arrays.items()
        }

    def _addresses(self, memory: Mapping[str, Memory]) -> dict[str, int]:
        addresses = {name: block.address for name, block in (*self.weights.items(), *memory.items())}
        return addresses | self.kernels.workspaces(self._scratch.address)
