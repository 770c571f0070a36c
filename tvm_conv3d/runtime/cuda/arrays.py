"""Tensors in a GPU's memory: those of torch and CuPy by their own attributes, JAX's by DLPack; none is copied.

That is the fastest, and DLPack makes the default stream wait for the current one, an error where a CUDA graph is
captured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm_conv3d.support.dtypes import numpy_dtype

#: DLPack's device types of memory that a GPU addresses: its own, and managed.
_CUDA = (2, 13)

#: Bytes that a kernel may load at once.
_ALIGNMENT = 16

#: Shapes whose strides are at hand.
_MAX_SHAPES = 4096


class GpuTensor(NamedTuple):
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
        return self.strides == _dense_strides(self.shape) or _is_dense(self.shape, self.strides)

    def fits(self, dtype: str) -> bool:
        """Whether a kernel may be given its address, as that of numbers of a type."""
        return self.dtype == dtype and self.address % _ALIGNMENT == 0 and self.dense


@dataclass(frozen=True, eq=False)
class Library:
    """How a library of tensors is spoken to.

    Attributes:
        name: of its module.
        look: (tensor) -> the tensor in a GPU's memory that it is.
        prepare: (tensor, dtype) -> the same in C order, of this type, at a multiple of 16 bytes.
        empty: (shape, dtype, tensor) -> a dense uninitialised tensor beside it.
        address: (tensor) -> of the first element of what `empty` gave.
        permute: (tensor, axes) -> the same with its axes in another order, a view where the library has views.
        stream: (device) -> handle of the stream on which the library works now.
        waits: whether results must be complete before the library may see them, as it works on streams of its own.
    """

    name: str
    look: Callable[[Any], GpuTensor]
    prepare: Callable[[Any, str], Any]
    empty: Callable[[tuple[int, ...], str, Any], Any]
    address: Callable[[Any], int]
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


def number_of(tensor: Any) -> int | None:
    """The GPU in whose memory a torch tensor lies; None where it is in the CPU's."""
    return int(tensor.get_device()) if tensor.is_cuda else None


def look(value: Any) -> GpuTensor:
    """`value`, which lies in a GPU's memory, as a :class:`GpuTensor`.

    Raises:
        TypeError: its library is unknown, it can't be looked at by DLPack, or has no memory.
    """
    return library_of(value).look(value)


def _look_by_dlpack(value: Any) -> GpuTensor:
    import tvm_ffi

    try:
        tensor = tvm_ffi.from_dlpack(value)
        shape, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.strides))
        device, address = int(tensor.device.index), int(tensor.data_ptr())
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"This tensor can't be read by DLPack: {error}. Received: {type(value)}") from error
    return GpuTensor(value, device, shape, str(tensor.dtype), address, strides)


def _look_at_cupy(array: Any) -> GpuTensor:
    strides = tuple(step // array.itemsize for step in array.strides)
    return GpuTensor(array, int(array.device.id), array.shape, array.dtype.name, int(array.data.ptr), strides)


def _look_at_torch(tensor: Any) -> GpuTensor:
    # an element may stand for its negative, of imaginary parts say
    plain = tensor.detach().resolve_neg() if tensor.is_neg() else tensor
    shape, address = tuple(plain.shape), plain.data_ptr()
    if not address and 0 not in shape:
        raise TypeError(f"This tensor has no memory of its own. Received: {type(tensor)}")
    return GpuTensor(plain, number_of(plain) or 0, shape, _torch_name(plain.dtype), address, plain.stride())


@functools.cache
def _torch_name(dtype: Any) -> str:
    """NumPy's name of one of torch's types."""
    return str(dtype).rpartition(".")[2]


def prepared(tensor: GpuTensor, dtype: str) -> GpuTensor:
    """A tensor as kernels may read it: itself, or what its library makes of it, on the library's current stream.

    Raises:
        TypeError: its library is unknown, or does not have the type.
    """
    library = library_of(tensor.value)
    if tensor.fits(dtype) and not library.waits:
        return tensor
    return expect(library.prepare(tensor.value, dtype), tensor.shape, dtype, tensor.device)


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


@functools.lru_cache(_MAX_SHAPES)
def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.append(strides[-1] * extent)
    return tuple(reversed(strides))


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


@functools.cache
def _torch(torch: Any) -> Library:
    def prepare(tensor: Any, dtype: str) -> Any:
        dense = tensor.detach().to(getattr(torch, dtype)).contiguous()
        return dense if dense.data_ptr() % _ALIGNMENT == 0 else dense.clone()

    def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

    def stream(device: int) -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    return Library(
        "torch",
        _look_at_torch,
        prepare,
        empty,
        lambda tensor: tensor.data_ptr(),
        lambda tensor, axes: tensor.permute(axes),
        # a number at once, in place of an object that is made for it
        getattr(torch._C, "_cuda_getCurrentRawStream", stream),
    )


@functools.cache
def _cupy(cupy: Any) -> Library:
    def prepare(array: Any, dtype: str) -> Any:
        # CuPy allocates on the current GPU, which may be another
        with array.device:
            dense = cupy.ascontiguousarray(array, dtype=numpy_dtype(dtype))
            return dense if dense.data.ptr % _ALIGNMENT == 0 else dense.copy()

    def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        with like.device:
            return cupy.empty(shape, numpy_dtype(dtype))

    def stream(device: int) -> int:
        with cupy.cuda.Device(device):
            return int(cupy.cuda.get_current_stream().ptr)

    return Library(
        "cupy",
        _look_at_cupy,
        prepare,
        empty,
        lambda array: int(array.data.ptr),
        lambda array, axes: array.transpose(axes),
        stream,
    )


@functools.cache
def _jax(jax: Any) -> Library:
    def prepare(array: Any, dtype: str) -> Any:
        return array.astype(dtype).block_until_ready()

    def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        (device,) = like.devices()
        # a fresh array that nobody else has seen: filling it breaks no promise
        return jax.device_put(jax.numpy.zeros(shape, dtype), device).block_until_ready()

    return Library(
        "jax",
        _look_by_dlpack,
        prepare,
        empty,
        lambda array: look(array).address,
        lambda array, axes: array.transpose(axes),
        lambda device: 0,
        waits=True,
    )
