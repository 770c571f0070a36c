"""Tensors in a GPU's memory, of any library that speaks DLPack: looked at without a copy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm_conv3d.support.dtypes import numpy_dtype

#: DLPack's device types of memory that a GPU addresses: its own, and managed.
_CUDA = (2, 13)


@dataclass(frozen=True)
class GpuTensor:
    """A tensor in a GPU's memory.

    Attributes:
        value: the user's object.
        device: the GPU's number.
        shape: its shape.
        dtype: NumPy's name of its element type.
        address: of its first element.
        strides: from one element to the next along each axis, in elements.
    """

    value: Any
    device: int
    shape: tuple[int, ...]
    dtype: str
    address: int
    strides: tuple[int, ...]

    @property
    def dense(self) -> bool:
        """Whether its elements lie side by side in C order."""
        return _is_dense(self.shape, self.strides)


@dataclass(frozen=True)
class Library:
    """How a library of tensors is spoken to.

    Attributes:
        name: of its module.
        prepare: (tensor, dtype) -> the same in C order, of this type, at a multiple of 16 bytes.
        empty: (shape, dtype, tensor) -> an uninitialised tensor beside it.
        permute: (tensor, axes) -> the same with its axes in another order, a view where the library has views.
        stream: (device) -> handle of the stream on which the library works now.
        waits: whether results must be complete before the library may see them, as it works on streams of its own.
    """

    name: str
    prepare: Callable[[Any, str], Any]
    empty: Callable[[tuple[int, ...], str, Any], Any]
    permute: Callable[[Any, tuple[int, ...]], Any]
    stream: Callable[[int], int]
    waits: bool = False


def on_gpu(value: Any) -> bool:
    """Whether `value` is a tensor in a GPU's memory."""
    ask = getattr(value, "__dlpack_device__", None)
    if ask is None:
        return False
    try:
        return int(ask()[0]) in _CUDA
    except (RuntimeError, TypeError, ValueError, BufferError):
        return False


def look(value: Any) -> GpuTensor:
    """`value`, which is :func:`on_gpu`, as a :class:`GpuTensor`.

    Raises:
        TypeError: it can't be looked at by DLPack.
    """
    import tvm_ffi

    try:
        plain = value.detach() if hasattr(value, "detach") else value
        tensor = tvm_ffi.from_dlpack(plain)
        shape, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.strides))
        device, address = int(tensor.device.index), int(tensor.data_ptr())
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"This tensor can't be read by DLPack: {error}. Received: {type(value)}") from error
    return GpuTensor(value, device, shape, str(tensor.dtype), address, strides)


def expect(value: Any, shape: tuple[int, ...], dtype: str, device: int) -> GpuTensor:
    """`value` as a :class:`GpuTensor` that a kernel for this shape and type may be given.

    Raises:
        TypeError: it is something else: its library does not have the type, say.
    """
    found = look(value)
    if (found.shape, found.dtype, found.device, found.dense) != (shape, dtype, device, True):
        layout = "dense" if found.dense else "not dense"
        raise TypeError(
            f"{type(value).__module__.partition('.')[0]} should give a dense {dtype} tensor of shape {shape} on GPU "
            f"{device}. Received: {found.dtype}, {found.shape}, GPU {found.device}, {layout}. For float64, JAX needs "
            'jax.config.update("jax_enable_x64", True).'
        )
    return found


def library_of(value: Any) -> Library:
    """How to speak to the library that `value` comes from.

    Raises:
        TypeError: it is none of torch, CuPy and JAX.
    """
    name = type(value).__module__.partition(".")[0]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch(torch)
    if name == "cupy":
        return _cupy(sys.modules["cupy"])
    if name in ("jax", "jaxlib"):
        return _jax(sys.modules["jax"])
    raise TypeError(f"GPU tensors may come from torch, CuPy or JAX. Received: {type(value)}")


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _torch(torch: Any) -> Library:
    def prepare(tensor: Any, dtype: str) -> Any:
        dense = tensor.detach().to(getattr(torch, dtype)).contiguous()
        return dense if dense.data_ptr() % 16 == 0 else dense.clone()

    return Library(
        "torch",
        prepare,
        lambda shape, dtype, like: torch.empty(shape, dtype=getattr(torch, dtype), device=like.device),
        lambda tensor, axes: tensor.permute(axes),
        lambda device: int(torch.cuda.current_stream(device).cuda_stream),
    )


def _cupy(cupy: Any) -> Library:
    def prepare(array: Any, dtype: str) -> Any:
        # CuPy allocates on the current GPU, which may be another
        with array.device:
            dense = cupy.ascontiguousarray(array, dtype=numpy_dtype(dtype))
            return dense if dense.data.ptr % 16 == 0 else dense.copy()

    def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        with like.device:
            return cupy.empty(shape, numpy_dtype(dtype))

    def stream(device: int) -> int:
        with cupy.cuda.Device(device):
            return int(cupy.cuda.get_current_stream().ptr)

    return Library("cupy", prepare, empty, lambda array, axes: array.transpose(axes), stream)


def _jax(jax: Any) -> Library:
    def prepare(array: Any, dtype: str) -> Any:
        return array.astype(dtype).block_until_ready()

    def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        (device,) = like.devices()
        # a fresh array that nobody else has seen: filling it breaks no promise
        return jax.device_put(jax.numpy.zeros(shape, dtype), device).block_until_ready()

    return Library("jax", prepare, empty, lambda array, axes: array.transpose(axes), lambda device: 0, waits=True)
