"""Compiled kernels on a GPU, and the memory they are called with."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, PACKED_BIAS, PACKED_KERNEL
from tvm_conv3d.engine.cuda.image import Image, Launches
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.target.gpu import known

if TYPE_CHECKING:
    from tvm_conv3d.runtime.loader import Entry


class Memory:
    """A block of a GPU's memory, freed with this object."""

    def __init__(self, device: int, size: int) -> None:
        runtime = driver.get()
        self.size = size
        self.address = runtime.allocate(device, size)
        # at the process's end all memory is freed anyway, and the driver may be gone
        weakref.finalize(self, runtime.free, device, self.address).atexit = False

    @classmethod
    def holding(cls, device: int, array: np.ndarray) -> Memory:
        """A copy of `array`."""
        memory = cls(device, array.nbytes)
        driver.get().upload(device, memory.address, np.ascontiguousarray(array))
        return memory


class LoadedImage:
    """The kernels of one image, loaded on each GPU when one is first called there."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._lock = ForkSafeLock()
        self._by_device: dict[int, Mapping[str, Any]] = {}

    @property
    def functions(self) -> dict[str, Kernels]:
        """The image's functions, by name."""
        return {name: Kernels(self, launches) for name, launches in self._image.functions.items()}

    def on(self, device: int) -> Mapping[str, Any]:
        """The kernels on a GPU, by name.

        Raises:
            ValueError: the image is for another architecture.
            tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
        """
        with self._lock:
            if device not in self._by_device:
                driver.check_runs_here(known(self._image.arch), device)
                self._by_device[device] = driver.get().load(device, self._image)
            return self._by_device[device]


class Kernels:
    """One function of an image: its kernels, launched one after the other."""

    def __init__(self, image: LoadedImage, launches: Launches) -> None:
        self._image = image
        self._launches = launches

    @property
    def workspaces(self) -> Mapping[str, int]:
        """Bytes of each buffer, by name, that a call needs beside its arguments; what is in it means nothing."""
        return self._launches.workspaces

    def __call__(self, device: int, stream: int, addresses: Mapping[str, int]) -> None:
        """Queues the launches on a stream; addresses are those of arguments and workspaces, by name.

        Raises:
            ValueError: the image is for another architecture.
            tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
        """
        kernels, runtime = self._image.on(device), driver.get()
        for launch in self._launches.launches:
            arguments = [addresses[name] for name in launch.arguments]
            kernel = kernels[launch.kernel]
            runtime.launch(device, kernel, launch.grid, launch.block, launch.shared, stream, arguments)


def pack(device: int, entry: Entry, weights: Mapping[str, np.ndarray]) -> dict[str, Memory]:
    """Packs weights on a GPU; as they were, they lie there no longer than that takes.

    Args:
        device: number of the GPU.
        entry: the function `pack`.
        weights: as they are stored, by name.

    Returns:
        The packed ones, by the convolution's names of them.

    Raises:
        tvm_conv3d.runtime.cuda.driver.CudaError: the GPU has no memory for them, or refuses a launch.
    """
    function = entry.function
    given = {a.name: Memory.holding(device, weights[a.name]) for a in function.of("weights", "bias")}
    packed = {a.name: Memory(device, a.size_bytes) for a in function.of("output")}
    entry.code(device, 0, {name: memory.address for name, memory in (*given.items(), *packed.items())})
    # streams of libraries do not wait for the default one
    driver.get().synchronize(device, 0)
    return {KERNEL: packed[PACKED_KERNEL], BIAS: packed[PACKED_BIAS]}
