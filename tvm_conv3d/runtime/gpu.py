"""The call on a GPU: input as it lies there, weights brought there once, the result beside the input."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, OUT, PACK, PACKED_BIAS, PACKED_KERNEL, RESIDUAL, X
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.cuda.image import Image, Launches
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import interchange, packing
from tvm_conv3d.runtime.cuda import arrays, driver
from tvm_conv3d.runtime.cuda.arrays import GpuTensor
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.gpu import gpu_traits, known

if TYPE_CHECKING:
    from tvm.target import Target

    from tvm_conv3d.runtime.loader import Entry, Loaded
    from tvm_conv3d.spec import Conv3DSpec


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


@dataclass(frozen=True)
class _Packed:
    version: Hashable
    memory: Mapping[str, Memory]

    @property
    def addresses(self) -> dict[str, int]:
        return {name: memory.address for name, memory in self.memory.items()}

    @property
    def nbytes(self) -> int:
        return sum(memory.size for memory in self.memory.values())


class Weights(NamedTuple):
    """The weights of a call.

    Attributes:
        kernel: (depth, height, width, channels / groups, filters).
        bias: (filters,), or None.
        version: changes whenever these do.
        structured: whether the kernel's values carry exact meaning (:mod:`tvm_conv3d.runtime.structure`).
        packed: table of their packed forms; None for that of the executor, which has one version of each form.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    version: Hashable
    structured: bool = False
    packed: Recent[Any, Any] | None = None


def host_array(source: interchange.Source) -> np.ndarray:
    """What a source holds; from a GPU's memory a copy, once the library's current stream is done with the tensor.

    Raises:
        TypeError: the tensor on a GPU is of an unknown library.
        tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
    """
    tensor = source.gpu
    if tensor is None:
        return source.numpy()
    library = arrays.library_of(tensor.value)
    prepared = library.prepare(tensor.value, tensor.dtype)
    driver.get().synchronize(tensor.device, library.stream(tensor.device))
    array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
    driver.get().download(tensor.device, array, arrays.look(prepared).address)
    return array


def without_elements(tensor: GpuTensor, shape: tuple[int, ...], dtype: str) -> Any:
    """A result that has no element, beside a tensor in a GPU's memory."""
    return arrays.library_of(tensor.value).empty(shape, dtype, tensor.value)


def _beside(tensor: GpuTensor, residual: interchange.Source, spec: Conv3DSpec) -> GpuTensor | Memory:
    """A residual operand as kernels on the current stream of the tensor's library may read it.

    Returns:
        One of the same library on the same GPU as it lies there, or what its library makes of it; else a copy.
    """
    library, there = arrays.library_of(tensor.value), residual.gpu
    if there is not None and there.device == tensor.device and arrays.library_of(there.value).name == library.name:
        prepared = library.prepare(there.value, spec.dtype)
        return arrays.expect(prepared, spec.output_shape, spec.dtype, tensor.device)
    copy = Memory.holding(tensor.device, interchange.prepare(host_array(residual), spec.dtype))
    # streams of libraries do not wait for the default one
    driver.get().synchronize(tensor.device, 0)
    return copy


class GpuExecutor:
    """Runs the convolutions of one layer on GPUs; safe to call from several threads.

    Args:
        most_layouts: of the weights that are kept, each a copy of them on a GPU.
    """

    def __init__(self, most_layouts: int) -> None:
        self._lock = ForkSafeLock()
        self._packed: Recent[tuple[int, str, str], _Packed] = Recent(most_layouts)

    def on_gpu(
        self,
        plan: Plan,
        loaded: Loaded,
        target: Target,
        tensor: GpuTensor,
        weights: Weights,
        residual: interchange.Source | None,
    ) -> Any:
        """The result beside a tensor in a GPU's memory, of the same library, queued on its current stream.

        A residual operand from elsewhere is copied to the tensor's GPU, and the result waited for.

        Raises:
            ValueError: the code is for another architecture than the tensor's GPU.
            TypeError: the tensor is of an unknown library, or of a type that the library does not have.
            tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses the launch.
        """
        driver.check_runs_here(gpu_traits(target), tensor.device)
        library = arrays.library_of(tensor.value)
        prepared = library.prepare(tensor.value, plan.spec.dtype)
        x = arrays.expect(prepared, plan.spec.input_shape, plan.spec.dtype, tensor.device)
        result = library.empty(plan.spec.output_shape, plan.spec.dtype, tensor.value)
        out = arrays.expect(result, plan.spec.output_shape, plan.spec.dtype, tensor.device)
        kernels, packed = loaded.main.code, self._pack(plan, loaded, tensor.device, weights)
        stream = library.stream(tensor.device)
        # of the library, which knows when the stream is done with it
        kept = {name: library.empty((size,), "uint8", tensor.value) for name, size in kernels.workspaces.items()}
        added = None if residual is None else _beside(tensor, residual, plan.spec)
        addresses = {X: x.address, OUT: out.address, **packed.addresses}
        if added is not None:
            addresses[RESIDUAL] = added.address
        addresses.update((name, arrays.look(workspace).address) for name, workspace in kept.items())
        kernels(tensor.device, stream, addresses)
        if library.waits or isinstance(added, Memory):
            driver.get().synchronize(tensor.device, stream)
        return result

    def from_host(
        self,
        plan: Plan,
        loaded: Loaded,
        target: Target,
        x: np.ndarray,
        weights: Weights,
        residual: interchange.Source | None,
    ) -> np.ndarray:
        """The result for an array in the CPU's memory: it is copied to the first GPU, and the result back.

        Raises:
            ValueError: the code is for another architecture than the GPU's.
            tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
        """
        driver.check_runs_here(gpu_traits(target), 0)
        out = np.empty(plan.spec.output_shape, x.dtype)
        kernels, packed = loaded.main.code, self._pack(plan, loaded, 0, weights)
        memory = {X: Memory.holding(0, x), OUT: Memory(0, out.nbytes)}
        if residual is not None:
            memory[RESIDUAL] = Memory.holding(0, interchange.prepare(host_array(residual), plan.spec.dtype))
        memory.update((name, Memory(0, size)) for name, size in kernels.workspaces.items())
        addresses = {name: block.address for name, block in memory.items()}
        kernels(0, 0, {**addresses, **packed.addresses})
        # on the default stream, as the copy: it waits for the kernels
        driver.get().download(0, out, addresses[OUT])
        return out

    def _pack(self, plan: Plan, loaded: Loaded, device: int, weights: Weights) -> _Packed:
        """Packed weights on a GPU; specs that differ in size only may share one copy."""
        identity = canonicalize(plan.spec).weights_identity
        key = (device, plan.algorithm, repr((plan.variant, plan.spec.kernel_shape, plan.spec.groups, identity)))
        table = self._packed if weights.packed is None else weights.packed
        with self._lock:
            packed = table.get(key)
            if packed is None or packed.version != weights.version:
                stored = packing.stored(plan.spec, weights.kernel, weights.bias)
                packed = _Packed(weights.version, pack(device, loaded.functions[PACK], stored))
                table.put(key, packed)
        return packed
