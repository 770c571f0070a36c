"""The call on a GPU: input as it lies there, weights brought there once, the result beside the input."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tvm_conv3d.compute.trim import seen_taps
from tvm_conv3d.cuda import arrays, driver
from tvm_conv3d.cuda.architectures import gpu_traits, known
from tvm_conv3d.cuda.arrays import GpuTensor
from tvm_conv3d.cuda.image import Image
from tvm_conv3d.dtypes import numpy_dtype
from tvm_conv3d.locks import ForkSafeLock
from tvm_conv3d.plan import Plan, algorithm_of
from tvm_conv3d.recent import Recent

if TYPE_CHECKING:
    from tvm.target import Target


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


class Kernels:
    """The kernels of one image, loaded on each GPU when they are first called there."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._lock = ForkSafeLock()
        self._by_device: dict[int, Any] = {}

    @property
    def workspaces(self) -> tuple[int, ...]:
        """Bytes of each buffer that a call needs beside its arguments; what is in it before and after means nothing."""
        return self._image.workspaces

    def __call__(self, device: int, stream: int, addresses: Sequence[int]) -> None:
        """Queues the launches on a stream; addresses are those of input, weights, bias, output and workspaces.

        Raises:
            ValueError: the image is for another architecture.
            tvm_conv3d.cuda.driver.CudaError: the GPU refuses it.
        """
        runtime = driver.get()
        with self._lock:
            if device not in self._by_device:
                driver.check_runs_here(known(self._image.arch), device)
                self._by_device[device] = runtime.load(device, self._image)
        for launch in self._image.launches:
            kernel = self._by_device[device][launch.kernel]
            arguments = [addresses[number] for number in launch.arguments]
            runtime.launch(device, kernel, launch.grid, launch.block, launch.shared, stream, arguments)


@dataclass(frozen=True)
class _Packed:
    version: Hashable
    kernel: Memory
    bias: Memory

    @property
    def nbytes(self) -> int:
        return self.kernel.size + self.bias.size


class Weights(NamedTuple):
    """The weights of a call.

    Attributes:
        kernel: (depth, height, width, channels / groups, filters).
        bias: (filters,), or None.
        version: changes whenever these do.
        structured: whether the kernel's values carry exact meaning (:mod:`tvm_conv3d.structure`).
        packed: table of their packed forms; None for that of the executor, which has one version of each form.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    version: Hashable
    structured: bool = False
    packed: Recent[Any, Any] | None = None


def to_host(tensor: GpuTensor) -> np.ndarray:
    """A copy in the CPU's memory, once the library's current stream is done with the tensor.

    Raises:
        TypeError: the tensor is of an unknown library.
        tvm_conv3d.cuda.driver.CudaError: the GPU refuses it.
    """
    library = arrays.library_of(tensor.value)
    prepared = library.prepare(tensor.value, tensor.dtype)
    driver.get().synchronize(tensor.device, library.stream(tensor.device))
    array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
    driver.get().download(tensor.device, array, arrays.look(prepared).address)
    return array


def without_elements(tensor: GpuTensor, shape: tuple[int, ...], dtype: str) -> Any:
    """A result that has no element, beside a tensor in a GPU's memory."""
    return arrays.library_of(tensor.value).empty(shape, dtype, tensor.value)


class GpuExecutor:
    """Runs the convolutions of one layer on GPUs; safe to call from several threads.

    Args:
        most_layouts: of the weights that are kept, each a copy of them on a GPU.
    """

    def __init__(self, most_layouts: int) -> None:
        self._lock = ForkSafeLock()
        self._packed: Recent[tuple[int, str, str], _Packed] = Recent(most_layouts)

    def on_gpu(self, plan: Plan, kernels: Kernels, target: Target, tensor: GpuTensor, weights: Weights) -> Any:
        """The result beside a tensor in a GPU's memory, of the same library, queued on its current stream.

        Raises:
            ValueError: the code is for another architecture than the tensor's GPU.
            TypeError: the tensor is of an unknown library, or of a type that the library does not have.
            tvm_conv3d.cuda.driver.CudaError: the GPU refuses the launch.
        """
        driver.check_runs_here(gpu_traits(target), tensor.device)
        library = arrays.library_of(tensor.value)
        prepared = library.prepare(tensor.value, plan.spec.dtype)
        x = arrays.expect(prepared, plan.spec.input_shape, plan.spec.dtype, tensor.device)
        result = library.empty(plan.spec.output_shape, plan.spec.dtype, tensor.value)
        out = arrays.expect(result, plan.spec.output_shape, plan.spec.dtype, tensor.device)
        packed = self._pack(plan, tensor.device, weights)
        stream = library.stream(tensor.device)
        # of the library, which knows when the stream is done with it
        kept = [library.empty((size,), "uint8", tensor.value) for size in kernels.workspaces]
        addresses = [x.address, packed.kernel.address, packed.bias.address, out.address]
        kernels(tensor.device, stream, [*addresses, *(arrays.look(workspace).address for workspace in kept)])
        if library.waits:
            driver.get().synchronize(tensor.device, stream)
        return result

    def from_host(self, plan: Plan, kernels: Kernels, target: Target, x: np.ndarray, weights: Weights) -> np.ndarray:
        """The result for an array in the CPU's memory: it is copied to the first GPU, and the result back.

        Raises:
            ValueError: the code is for another architecture than the GPU's.
            tvm_conv3d.cuda.driver.CudaError: the GPU refuses it.
        """
        driver.check_runs_here(gpu_traits(target), 0)
        out = np.empty(plan.spec.output_shape, x.dtype)
        packed = self._pack(plan, 0, weights)
        source, result = Memory.holding(0, x), Memory(0, out.nbytes)
        kept = [Memory(0, size) for size in kernels.workspaces]
        kernels(0, 0, [m.address for m in (source, packed.kernel, packed.bias, result, *kept)])
        # on the default stream, as the copy: it waits for the kernels
        driver.get().download(0, out, result.address)
        return out

    def _pack(self, plan: Plan, device: int, weights: Weights) -> _Packed:
        """Packed weights on a GPU; specs that differ in size only may share one copy."""
        algorithm = algorithm_of(plan, "cuda")
        taps = seen_taps(plan.spec)
        key = (device, plan.algorithm, repr((plan.variant, plan.spec.kernel_shape, plan.spec.groups, taps)))
        table = self._packed if weights.packed is None else weights.packed
        with self._lock:
            packed = table.get(key)
            if packed is None or packed.version != weights.version:
                parts: list[tuple[Callable[..., np.ndarray], np.ndarray | None]]
                parts = [(algorithm.pack_kernel, weights.kernel), (algorithm.pack_bias, weights.bias)]
                kernel, bias = (Memory.holding(device, pack(plan.spec, plan.variant, a)) for pack, a in parts)
                packed = _Packed(weights.version, kernel, bias)
                table.put(key, packed)
        return packed
