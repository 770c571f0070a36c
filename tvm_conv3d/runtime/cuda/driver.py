"""NVIDIA's driver, by its C interface: devices, memory, and launches in the context that other libraries share.

The driver comes with the GPU; nothing else has to be installed to run compiled code. Each function that the driver
refuses raises an error that names it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.target.gpu import GpuTraits

_LIBRARY = "libcuda.so.1"

_MAJOR, _MINOR = 75, 76

#: CUDA's number of the attribute by which a kernel asks for more shared memory, and the bytes that it has unasked.
_MAX_DYNAMIC_SHARED, _SHARED_UNASKED = 8, 48 << 10

#: CUDA's numbers of errors that have a cause worth telling.
_HINTS = {
    1: "an argument is out of range",
    2: "the GPU's memory is full",
    3: "the driver is not started; a process that was forked from one that used the GPU can't use it: spawn it instead",
    34: "this libcuda.so.1 is a stub of the CUDA toolkit, not the driver; look at LD_LIBRARY_PATH",
    100: "no GPU is visible to this process; look at CUDA_VISIBLE_DEVICES",
    209: "the code was made for another architecture",
    218: "the code is damaged",
    222: "the code was made by a CUDA newer than the driver",
    400: "the stream or the kernel belongs to another GPU, or does not exist any more",
    700: "a kernel read or wrote beyond its buffers; the process can't use the GPU any more",
    701: "the kernel needs more threads, registers or shared memory than the GPU gives a block",
    803: "the driver's library and its kernel module are of different versions; restart after an update",
    804: "the driver is too old for this CUDA",
}

#: Errors by which the driver says that it and all memory are gone: at the process's end, and in forked children.
_GONE = (3, 4)


class CudaError(RuntimeError):
    """The GPU can't be used, or did not do what it was asked.

    Attributes:
        status: CUDA's number of the error, 0 where it is none of the driver's.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        number: as CUDA counts.
        name: for people.
        capability: compute capability as a number, 90 for 9.0.
    """

    number: int
    name: str
    capability: int


class Driver:
    """The driver of this machine.

    Raises:
        CudaError: there is none, or it does not start.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CudaError(
                f"There is no NVIDIA driver here: {_LIBRARY} does not load ({error}). Install the GPU's driver, or "
                "give a container access to it (docker run --gpus all)."
            ) from error
        self._call("cuInit", 0)
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def count(self) -> int:
        """Number of GPUs that this process may use."""
        number = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(number))
        return number.value

    def device(self, number: int) -> Device:
        """Facts of one GPU.

        Raises:
            CudaError: there is none of this number.
        """
        if not 0 <= number < self.count():
            raise CudaError(f"There is no GPU number {number}: this process sees {self.count()}.")
        handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        self._call("cuDeviceGet", ctypes.byref(handle), number)
        self._call("cuDeviceGetName", name, len(name), handle)
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
            parts.append(value.value)
        return Device(number, name.value.decode(errors="replace"), 10 * parts[0] + parts[1])

    def load(self, number: int, image: Image) -> Mapping[str, Any]:
        """The kernels of an image by name, on one GPU; compiles the source where the image has no machine code."""
        cubin = image.cubin or toolkit.compile_cubin(image.source, image.arch)
        module = ctypes.c_void_p()
        kernels = {}
        with self._on(number):
            self._call("cuModuleLoadData", ctypes.byref(module), cubin)
            for name in image.kernels:
                function = ctypes.c_void_p()
                self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
                kernels[name] = function
            for launch in image.launches:
                if launch.shared > _SHARED_UNASKED:
                    # once for all launches
                    self._call("cuFuncSetAttribute", kernels[launch.kernel], _MAX_DYNAMIC_SHARED, launch.shared)
        return kernels

    def launch(
        self,
        number: int,
        kernel: Any,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        stream: int,
        addresses: Sequence[int],
    ) -> None:
        """Queues a kernel on a stream; its arguments are addresses in the GPU's memory."""
        values = [ctypes.c_void_p(address) for address in addresses]
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._on(number):
            self._call("cuLaunchKernel", kernel, *grid, *block, shared, ctypes.c_void_p(stream), arguments, None)

    def allocate(self, number: int, size: int) -> int:
        """The address of `size` bytes of the GPU's memory."""
        address = ctypes.c_uint64()
        with self._on(number):
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, number: int, address: int) -> None:
        """Gives memory back, after what still uses it; what went with the driver needs no more."""
        try:
            with self._on(number):
                self._call("cuMemFree_v2", ctypes.c_uint64(address))
        except CudaError as error:
            if error.status not in _GONE:
                raise

    def upload(self, number: int, address: int, array: np.ndarray) -> None:
        """Copies a C-contiguous array to the GPU; it is there for all streams when this returns."""
        source = ctypes.c_void_p(array.__array_interface__["data"][0])
        with self._on(number):
            self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes))
            # the call may return before the copy ends, and streams of other libraries don't wait for the default one
            self._call("cuStreamSynchronize", None)

    def download(self, number: int, array: np.ndarray, address: int) -> None:
        """Fills a C-contiguous array from the GPU."""
        destination = ctypes.c_void_p(array.__array_interface__["data"][0])
        with self._on(number):
            self._call("cuMemcpyDtoH_v2", destination, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))

    def synchronize(self, number: int, stream: int) -> None:
        """Waits until all that is queued on a stream is done."""
        with self._on(number):
            self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    @contextmanager
    def _on(self, number: int) -> Iterator[None]:
        """Makes a GPU's primary context, which other libraries use as well, current for this thread."""
        context = self._contexts.get(number)
        if context is None:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(handle), number)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
            context = self._contexts.setdefault(number, context)
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            words = _HINTS.get(status) or (text.value or b"unknown error").decode(errors="replace")
            raise CudaError(f"The GPU can't be used: {name} fails with error {status}: {words}.", status)


@functools.cache
def get() -> Driver:
    """The driver of this machine; raises CudaError where it can't be used."""
    return Driver()


def device(number: int) -> Device:
    """Facts of a GPU of this machine.

    Raises:
        ValueError: there is no GPU that can be used; says why.
    """
    try:
        return get().device(number)
    except CudaError as error:
        raise ValueError(f'{error} To compile for a GPU elsewhere, name its architecture: "cuda:sm_90".') from error


def check_runs_here(traits: GpuTraits, number: int = 0) -> None:
    """Makes sure that code for an architecture runs on a GPU of this machine.

    Raises:
        ValueError: there is no usable GPU, or it is of another architecture.
    """
    found = device(number)
    same = found.capability // 10 == traits.arch // 10 and found.capability >= traits.arch
    if not same:
        raise ValueError(
            f"GPU {number} ({found.name}) has compute capability {found.capability / 10:.1f}: it can't run code for "
            f'{traits.name}. Take target="cuda", which asks the GPU.'
        )
