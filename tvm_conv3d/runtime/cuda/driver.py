"""NVIDIA's driver, by its C interface: devices, memory, and launches in the context that other libraries share.

The driver comes with the GPU; nothing else has to be installed to run compiled code. Each function that the driver
refuses raises an error that names it.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Image, Launch
from tvm_conv3d.target.gpu import GpuTraits

_LIBRARY = "libcuda.so.1"

_CACHE, _MAJOR, _MINOR = 38, 75, 76

#: The status of a stream that is being captured.
_CAPTURING = 1

_LOST = "the process can't use the GPU any more"

_BEFORE = "call once, with the same shapes and weights, before the capture"

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
    700: f"a kernel read or wrote beyond its buffers; {_LOST}",
    701: "the kernel needs more threads, registers or shared memory than the GPU gives a block",
    702: f"a kernel took longer than the GPU's watchdog allows; {_LOST}",
    709: "the GPU's context was destroyed, by a reset of the device say",
    710: f"a kernel stopped at an assertion; {_LOST}",
    714: f"a kernel's stack overflowed or is damaged; {_LOST}",
    715: f"a kernel has an instruction that this GPU does not know; {_LOST}",
    716: f"a kernel read or wrote several numbers at once where they are not aligned; {_LOST}",
    717: f"a kernel reached for memory of another kind; {_LOST}",
    718: f"a kernel jumped out of its code; {_LOST}",
    719: f"a kernel failed while it ran; {_LOST}",
    803: "the driver's library and its kernel module are of different versions; restart after an update",
    804: "the driver is too old for this CUDA",
    900: f"a stream is being captured into a CUDA graph, which does not allow this; {_BEFORE}",
    901: f"the capture of a CUDA graph was ended by an earlier error; {_BEFORE}",
    902: "two captures of CUDA graphs would become one",
    903: "the capture of a CUDA graph began on another stream",
    904: "a capture of a CUDA graph ends while a stream that it forked has not joined it",
    905: "work in a CUDA graph would depend on work outside of its capture",
    906: f"the default stream would wait for one that is being captured into a CUDA graph; {_BEFORE}",
    907: "an event of a captured stream can't be asked about or waited for",
    908: "the capture of a CUDA graph began in another thread",
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
        cache: bytes of its second-level cache.
    """

    number: int
    name: str
    capability: int
    cache: int


class Queued(NamedTuple):
    """A launch, as the driver takes it.

    Attributes:
        kernel: its name.
        extents: of grid and block, then the bytes of shared memory sized at launch.
        arguments: pointers to the addresses that the kernel takes, in its order.
    """

    kernel: str
    extents: tuple[int, ...]
    arguments: Any


class Arguments:
    """Addresses as launches take them, made once and filled for each call, which is over when its launches are queued.

    Args:
        launches: of one function, in order.

    Attributes:
        names: of what the kernels take, each once.
        queued: the launches.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.names = tuple(dict.fromkeys(name for launch in launches for name in launch.arguments))
        self._addresses = (ctypes.c_uint64 * len(self.names))()
        self._write = struct.Struct(f"{len(self.names)}Q").pack_into
        first, size = ctypes.addressof(self._addresses), ctypes.sizeof(ctypes.c_uint64)
        places = {name: first + size * i for i, name in enumerate(self.names)}
        self.queued = tuple(
            Queued(
                launch.kernel,
                (*launch.grid, *launch.block, launch.shared),
                (ctypes.c_void_p * len(launch.arguments))(*(places[name] for name in launch.arguments)),
            )
            for launch in launches
        )

    def fill(self, addresses: Mapping[str, int]) -> None:
        """Writes the addresses, by name, of a call's buffers."""
        self._write(self._addresses, 0, *[addresses[name] for name in self.names])


class _Context:
    """A GPU's primary context, which other libraries use as well: current for this thread in a `with` statement."""

    def __init__(self, call: Callable[..., None], handle: ctypes.c_void_p) -> None:
        self._call = call
        self._handle = handle
        # what is popped is what was pushed
        self._popped = ctypes.byref(ctypes.c_void_p())

    def __enter__(self) -> None:
        self._call("cuCtxPushCurrent_v2", self._handle)

    def __exit__(self, *_: object) -> None:
        self._call("cuCtxPopCurrent_v2", self._popped)


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
        self._contexts: dict[int, _Context] = {}

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
        facts = []
        for attribute in (_MAJOR, _MINOR, _CACHE):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
            facts.append(value.value)
        major, minor, cache = facts
        return Device(number, name.value.decode(errors="replace"), 10 * major + minor, cache)

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

    def launch(self, number: int, kernels: Mapping[str, Any], arguments: Arguments, stream: int) -> None:
        """Queues a function's launches on a stream, one after the other.

        Args:
            number: of the GPU.
            kernels: of :meth:`load`.
            arguments: filled with addresses in the GPU's memory.
            stream: its handle.
        """
        with self._on(number):
            self._queue(kernels, arguments, ctypes.c_void_p(stream))

    def _queue(self, kernels: Mapping[str, Any], arguments: Arguments, stream: ctypes.c_void_p) -> None:
        for kernel, extents, pointers in arguments.queued:
            self._call("cuLaunchKernel", kernels[kernel], *extents, stream, pointers, None)

    def elapsed(self, number: int, kernels: Mapping[str, Any], calls: Sequence[Arguments]) -> float:
        """Seconds that calls of a function take one after the other, by the GPU's clock; waits for them.

        Args:
            number, kernels: as of :meth:`launch`.
            calls: the filled arguments of each.
        """
        stream, events, milliseconds = ctypes.c_void_p(), (ctypes.c_void_p(), ctypes.c_void_p()), ctypes.c_float()
        with self._on(number):
            try:
                for event in events:
                    self._call("cuEventCreate", ctypes.byref(event), 0)
                self._call("cuEventRecord", events[0], stream)
                for arguments in calls:
                    self._queue(kernels, arguments, stream)
                self._call("cuEventRecord", events[1], stream)
                self._call("cuEventSynchronize", events[1])
                self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
            finally:
                for event in filter(None, events):
                    self._call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3

    def allocate(self, number: int, size: int) -> int:
        """The address of `size` bytes, at least one, of the GPU's memory."""
        address = ctypes.c_uint64()
        with self._on(number):
            self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
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

    def is_capturing(self, number: int, stream: int) -> bool:
        """Whether what is queued on a stream goes into a CUDA graph, and is not run; never on the default stream."""
        status = ctypes.c_int()
        if stream:
            with self._on(number):
                self._call("cuStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value == _CAPTURING

    def _on(self, number: int) -> _Context:
        """Makes a GPU's context current for this thread."""
        context = self._contexts.get(number)
        if context is None:
            handle, primary = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(handle), number)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(primary), handle)
            context = self._contexts.setdefault(number, _Context(self._call, primary))
        return context

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


def check_not_capturing(number: int, stream: int, why: str) -> None:
    """Refuses what would break the capture of a CUDA graph, before it does.

    Args:
        number: of the GPU.
        stream: that a call works on.
        why: what the call would do, and what to do instead.

    Raises:
        RuntimeError: the stream is being captured.
    """
    if get().is_capturing(number, stream):
        raise RuntimeError(f"A CUDA graph is being captured, and {why}.")
