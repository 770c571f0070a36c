"""A driver whose GPU is the CPU: kernels run thread by thread on NumPy's memory; and tensors that claim to be there."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import tvm_ffi  # noqa: F401  (looks at `torch` where it is imported: before there is a fake)

from cuda_on_cpu import compile_kernels, run_program
from cuda_on_cpu.execute import Launch
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.runtime import compatibility
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.driver import Arguments, CudaError, Device, Driver


class FakeDriver:
    """In the place of `tvm_conv3d.runtime.cuda.driver.Driver`."""

    def __init__(self, capability: int = 80, count: int = 1, cache: int = 0) -> None:
        self.capability = capability
        self.cache = cache
        self.devices = count
        self.memory: dict[int, np.ndarray] = {}
        self.launched: list[tuple[int, int]] = []
        self.waited: list[int] = []
        self.captured: set[int] = set()
        self.current = 0
        self.uploads = 0
        self.freed = 0

    def count(self) -> int:
        return self.devices

    def device(self, number: int) -> Device:
        if not 0 <= number < self.devices:
            raise CudaError(f"There is no GPU number {number}: this process sees {self.devices}.")
        return Device(number, "fake", self.capability, self.cache)

    def load(self, number: int, image: Image) -> Mapping[str, Any]:
        program = compile_kernels(image.source)
        return {name: (program, name) for name in image.kernels}

    def launch(self, number: int, kernels: Mapping[str, Any], arguments: Arguments, stream: int) -> None:
        for kernel, (*extents, shared), pointers in arguments.queued:
            program, name = kernels[kernel]
            self.launched.append((number, stream))
            addresses = [ctypes.c_uint64.from_address(pointer).value for pointer in pointers]
            blocks = self._buffers(addresses)
            buffers = {f"b{i}": block for i, block in enumerate(blocks)}
            launch = Launch(name, tuple(extents[:3]), tuple(extents[3:]), shared, tuple(buffers))
            report = run_program(program, [launch], buffers)
            report.check()
            for i, block in enumerate(blocks):
                block[:] = report.buffers[f"b{i}"]

    def elapsed(self, number: int, kernels: Mapping[str, Any], calls: Sequence[Arguments]) -> float:
        began = time.perf_counter()
        for arguments in calls:
            self.launch(number, kernels, arguments, 0)
        return time.perf_counter() - began

    def _buffers(self, addresses: Sequence[int]) -> list[np.ndarray]:
        """What lies there: to the block's end, or to where the next one begins in the same block."""
        found = []
        for address in addresses:
            start = max(begin for begin in self.memory if begin <= address)
            block = self.memory[start]
            end = min([a - start for a in addresses if a > address] + [block.size])
            assert address - start < end, "no buffer of the GPU's lies there"
            found.append(block[address - start : end])
        return found

    def allocate(self, number: int, size: int) -> int:
        return self.adopt(np.full(size, 0xFF, np.uint8))

    def adopt(self, block: np.ndarray) -> int:
        address = block.__array_interface__["data"][0]
        self.memory[address] = block
        return int(address)

    def free(self, number: int, address: int) -> None:
        self.freed += 1
        del self.memory[address]

    def upload(self, number: int, address: int, array: np.ndarray) -> None:
        self.uploads += 1
        self.memory[address][:] = array.reshape(-1).view(np.uint8)

    def download(self, number: int, array: np.ndarray, address: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.memory[address]

    def synchronize(self, number: int, stream: int) -> None:
        self.waited.append(stream)

    def is_capturing(self, number: int, stream: int) -> bool:
        return stream in self.captured

    @contextlib.contextmanager
    def on(self, number: int) -> Iterator[None]:
        """Makes a GPU the current one, on which libraries allocate."""
        before, self.current = self.current, number
        yield
        self.current = before


class _Tensor(ctypes.Structure):
    """DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _CupyDevice:
    """A GPU as CuPy has it: the current one in a `with` statement."""

    def __init__(self, driver: FakeDriver, number: int) -> None:
        self.id = number
        self._on = driver.on(number)

    def __enter__(self) -> None:
        self._on.__enter__()

    def __exit__(self, *given: Any) -> None:
        self._on.__exit__(*given)


class GpuArray:
    """An array in the fake GPU's memory, as CuPy would show it."""

    __module__ = "cupy"

    def __init__(self, driver: FakeDriver, array: np.ndarray, device: int | None = None) -> None:
        self.driver = driver
        self.array = np.ascontiguousarray(array)
        self.shape = self.array.shape
        self.number = driver.current if device is None else device
        self.address = driver.adopt(self.array.reshape(-1).view(np.uint8))
        self.kept: list[Any] = []
        self.data = SimpleNamespace(ptr=self.address)

    @property
    def device(self) -> _CupyDevice:
        return _CupyDevice(self.driver, self.number)

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self.array.strides

    def like(self, array: np.ndarray) -> GpuArray:
        """Another of the same library on the same GPU."""
        return type(self)(self.driver, array, self.number)

    def transpose(self, axes: tuple[int, ...]) -> GpuArray:
        """A view."""
        view = copy.copy(self)
        view.array = self.array.transpose(axes)
        view.shape = view.array.shape
        return view

    def copy(self) -> GpuArray:
        return self.like(self.array.copy())

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, **_: Any) -> Any:
        extents = (ctypes.c_int64 * len(self.shape))(*self.shape)
        steps = (ctypes.c_int64 * len(self.shape))(*(s // self.array.itemsize for s in self.array.strides))
        bits = 8 * self.array.itemsize
        code = "iuf".index(self.array.dtype.kind)
        tensor = _Tensor(self.address, 2, self.number, len(self.shape), code, bits, 1, extents, steps, 0, None, None)
        self.kept += [extents, steps, tensor]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(tensor), b"dltensor", None)


class FakeCupy(SimpleNamespace):
    """In the place of the module `cupy`, with one current stream for each GPU."""

    STREAM = 77

    __hash__ = object.__hash__  # as modules have

    def __init__(self, driver: FakeDriver) -> None:
        cuda = SimpleNamespace(
            Device=driver.on, get_current_stream=lambda: SimpleNamespace(ptr=self.STREAM + driver.current)
        )
        super().__init__(driver=driver, cuda=cuda)

    def ascontiguousarray(self, array: GpuArray, dtype: Any) -> GpuArray:
        fits = array.array.dtype == dtype and array.array.flags.c_contiguous
        return array if fits else GpuArray(self.driver, array.array.astype(dtype))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> GpuArray:
        return GpuArray(self.driver, _rubbish(shape, dtype))


class JaxArray(GpuArray):
    """The same, as JAX would show it where 64-bit types are off, as they are by default."""

    __module__ = "jaxlib"

    def astype(self, dtype: str) -> JaxArray:
        return self.like(self.array.astype(_without_64_bits(dtype)))

    def block_until_ready(self) -> JaxArray:
        return self

    def devices(self) -> set[int]:
        return {self.number}


class FakeJax(SimpleNamespace):
    """In the place of the module `jax`."""

    __hash__ = object.__hash__  # as modules have

    def __init__(self, driver: FakeDriver) -> None:
        def zeros(shape: tuple[int, ...], dtype: str) -> JaxArray:
            return JaxArray(driver, np.zeros(shape, _without_64_bits(dtype)))

        def device_put(array: JaxArray, device: int) -> JaxArray:
            return JaxArray(driver, array.array, device)

        super().__init__(numpy=SimpleNamespace(zeros=zeros), device_put=device_put)


class TorchTensor(GpuArray):
    """The same, as PyTorch would show it."""

    __module__ = "torch"

    requires_grad = False
    layout = "strided"
    is_cpu, is_cuda = False, True
    __torch_dispatch__ = None

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="cuda", index=self.number)

    def get_device(self) -> int:
        return self.number

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def is_neg(self) -> bool:
        return False

    def detach(self) -> TorchTensor:
        return self

    def contiguous(self) -> TorchTensor:
        return self

    def to(self, dtype: Any) -> TorchTensor:
        return self if self.array.dtype == dtype else self.like(self.array.astype(dtype))

    def clone(self) -> TorchTensor:
        return self.like(self.array.copy())

    def data_ptr(self) -> int:
        return self.address


class FakeTorch(SimpleNamespace):
    """In the place of the module `torch`, with a current stream for each GPU."""

    STREAM = 55

    Tensor = TorchTensor
    strided = "strided"
    float32, float64, float16, uint8 = map(np.dtype, ("float32", "float64", "float16", "uint8"))

    __hash__ = object.__hash__  # as modules have

    def __init__(self, driver: FakeDriver) -> None:
        def current_stream(device: int) -> Any:
            return SimpleNamespace(cuda_stream=self.STREAM + device)

        super().__init__(driver=driver, cuda=SimpleNamespace(current_stream=current_stream), _C=None)

    def empty(self, shape: tuple[int, ...], dtype: Any, device: Any) -> TorchTensor:
        return TorchTensor(self.driver, _rubbish(shape, dtype), device.index)

    def is_grad_enabled(self) -> bool:
        return True


def _rubbish(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape)


def _without_64_bits(dtype: str) -> str:
    return "float32" if dtype == "float64" else dtype


class FakeLibrary:
    """In the place of `libcuda.so.1`: notes what is called; functions fail with the status that is told of them."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = statuses
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def function(*_: Any) -> int:
            self.called.append(name)
            return self.statuses.get(name, 0)

        return function


def driver_of(library: FakeLibrary) -> Driver:
    """The real driver's Python side on a library that is not there."""
    found = Driver.__new__(Driver)
    found._library = library  # type: ignore[assignment]
    found._contexts = {}
    return found


@contextlib.contextmanager
def fake_gpu(monkeypatch: Any, **facts: int) -> Iterator[FakeDriver]:
    """A :class:`FakeDriver` in the place of the driver, and fake libraries whose tensors lie in its memory."""
    fake = FakeDriver(**facts)
    cached = (compatibility.gpu_target, compatibility.check_runs_here)
    with monkeypatch.context() as patch:
        patch.setattr(drivers, "get", lambda: fake)
        for name, module in (("cupy", FakeCupy), ("jax", FakeJax), ("torch", FakeTorch)):
            patch.setitem(sys.modules, name, module(fake))
        for function in cached:
            function.cache_clear()
        yield fake
    for function in cached:
        function.cache_clear()
