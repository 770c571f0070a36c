"""A driver whose GPU is the CPU: kernels run thread by thread on NumPy's memory; and tensors that claim to be there."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from cuda_on_cpu import compile_kernels, run_program
from cuda_on_cpu.execute import Launch
from tvm_conv3d.cuda.driver import CudaError, Device
from tvm_conv3d.cuda.image import Image


class FakeDriver:
    """In the place of `tvm_conv3d.cuda.driver.Driver`."""

    def __init__(self, capability: int = 80, count: int = 1) -> None:
        self.capability = capability
        self.devices = count
        self.memory: dict[int, np.ndarray] = {}
        self.launched: list[tuple[int, int]] = []
        self.uploads = 0
        self.freed = 0

    def count(self) -> int:
        return self.devices

    def device(self, number: int) -> Device:
        if not 0 <= number < self.devices:
            raise CudaError(f"There is no GPU number {number}: this process sees {self.devices}.")
        return Device(number, "fake", self.capability)

    def load(self, number: int, image: Image) -> Mapping[str, Any]:
        program = compile_kernels(image.source)
        return {launch.kernel: (program, launch.kernel) for launch in image.launches}

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
        program, name = kernel
        self.launched.append((number, stream))
        buffers = {f"b{i}": self.memory[address] for i, address in enumerate(addresses)}
        report = run_program(program, [Launch(name, tuple(grid), tuple(block), shared, tuple(buffers))], buffers)
        report.check()
        for i, address in enumerate(addresses):
            self.memory[address][:] = report.buffers[f"b{i}"]

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
        pass


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


class GpuArray:
    """An array in the fake GPU's memory, as CuPy would show it."""

    __module__ = "cupy"

    def __init__(self, driver: FakeDriver, array: np.ndarray, device: int = 0) -> None:
        self.driver = driver
        self.array = np.ascontiguousarray(array)
        self.shape = self.array.shape
        self.number = device
        self.address = driver.adopt(self.array.reshape(-1).view(np.uint8))
        self.kept: list[Any] = []
        self.data = SimpleNamespace(ptr=self.address)
        self.device = contextlib.nullcontext()

    def copy(self) -> GpuArray:
        return GpuArray(self.driver, self.array.copy(), self.number)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, **_: Any) -> Any:
        extents = (ctypes.c_int64 * len(self.shape))(*self.shape)
        steps = (ctypes.c_int64 * len(self.shape))(*(s // self.array.itemsize for s in self.array.strides))
        bits = 8 * self.array.itemsize
        tensor = _Tensor(self.address, 2, self.number, len(self.shape), 2, bits, 1, extents, steps, 0, None, None)
        self.kept += [extents, steps, tensor]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(tensor), b"dltensor", None)


class FakeCupy(SimpleNamespace):
    """In the place of the module `cupy`, with one current stream."""

    STREAM = 77

    def __init__(self, driver: FakeDriver) -> None:
        stream = SimpleNamespace(ptr=self.STREAM)
        super().__init__(driver=driver, cuda=SimpleNamespace(get_current_stream=lambda: stream))

    def ascontiguousarray(self, array: GpuArray, dtype: Any) -> GpuArray:
        if array.array.dtype == dtype:
            return array
        return GpuArray(self.driver, array.array.astype(dtype), array.number)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> GpuArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return GpuArray(self.driver, np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape))
