"""Compiled kernels on a GPU, and the memory they are called with."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, PACKED_BIAS, PACKED_KERNEL
from tvm_conv3d.engine.cuda.image import Image, Launches
from tvm_conv3d.runtime.cuda import arrays, driver
from tvm_conv3d.runtime.cuda.arrays import GpuTensor
from tvm_conv3d.runtime.cuda.driver import Arguments
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.target.gpu import known

if TYPE_CHECKING:
    from tvm_conv3d.runtime.loader import Entry

#: Buffers in one block begin at multiples of this, as CUDA's own allocations do.
_APART = 256


class Memory:
    """A block of a GPU's memory, freed with this object; of no bytes, none."""

    def __init__(self, device: int, size: int) -> None:
        self.size = size
        self.address = 0
        if size:
            runtime = driver.get()
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

    def is_on(self, device: int) -> bool:
        """Whether the kernels are loaded on a GPU."""
        return device in self._by_device

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
        # calls that find them wait for none
        found = self._by_device.get(device)
        if found is None:
            with self._lock:
                found = self._by_device.get(device)
                if found is None:
                    driver.check_runs_here(known(self._image.arch), device)
                    found = self._by_device[device] = driver.get().load(device, self._image)
        return found


class Kernels:
    """One function of an image: its kernels, launched one after the other; several threads may call it.

    Attributes:
        scratch: bytes of the block that a call needs beside its arguments; what is in it means nothing.
    """

    def __init__(self, image: LoadedImage, launches: Launches) -> None:
        self._image = image
        self._launches = launches.launches
        # a block for each call that is being queued
        self._idle: list[Arguments] = []
        self._offsets, self.scratch = _places(launches.workspaces)

    def is_on(self, device: int) -> bool:
        """Whether they are loaded on a GPU, by an earlier call."""
        return self._image.is_on(device)

    def workspaces(self, scratch: int) -> dict[str, int]:
        """Addresses of the buffers in a block of :attr:`scratch` bytes, by name."""
        return {name: scratch + offset for name, offset in self._offsets.items()}

    def __call__(self, device: int, stream: int, addresses: Mapping[str, int]) -> None:
        """Queues the launches on a stream; addresses are those of arguments and workspaces, by name.

        Raises:
            ValueError: the image is for another architecture.
            tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
        """
        kernels = self._image.on(device)
        try:
            arguments = self._idle.pop()
        except IndexError:
            arguments = Arguments(self._launches)
        arguments.fill(addresses)
        driver.get().launch(device, kernels, arguments, stream)
        self._idle.append(arguments)

    def run_beside(self, tensor: GpuTensor, stream: int, addresses: Mapping[str, int]) -> None:
        """Queues the launches on a stream, with a block of the tensor's library for what kernels leave for others.

        Args:
            tensor: on whose GPU they run.
            stream: the library's current one.
            addresses: of arguments, by name.

        Raises:
            ValueError, tvm_conv3d.runtime.cuda.driver.CudaError: as a call.
        """
        if self.scratch:
            library = arrays.library_of(tensor.value)
            # of the library, which knows when the stream is done with it
            scratch = library.empty((self.scratch,), "uint8", tensor.value)
            addresses = {**addresses, **self.workspaces(library.address(scratch))}
        self(tensor.device, stream, addresses)

    def elapsed(self, device: int, calls: Sequence[Mapping[str, int]]) -> float:
        """Seconds that calls with these addresses take one after the other, by the GPU's clock.

        Raises:
            ValueError, tvm_conv3d.runtime.cuda.driver.CudaError: as a call.
        """
        made: dict[int, Arguments] = {}
        for addresses in calls:
            if id(addresses) not in made:
                made[id(addresses)] = Arguments(self._launches)
                made[id(addresses)].fill(addresses)
        return driver.get().elapsed(device, self._image.on(device), [made[id(addresses)] for addresses in calls])


def _places(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where buffers of these sizes lie in one block, by name, and the block's size."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _APART) * _APART
    return offsets, end


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
