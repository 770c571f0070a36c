"""Arrays of any library in, the same kind out.

Everything is looked at through NumPy, without a copy where the memory allows it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tvm_conv3d.runtime import conversion, output_pool, threads
from tvm_conv3d.runtime.cuda import arrays, driver
from tvm_conv3d.runtime.cuda.arrays import GpuTensor
from tvm_conv3d.support.dtypes import numpy_dtype

#: DLPack's device type of memory that the CPU addresses.
_DLPACK_CPU = 1

#: As a type of NumPy's, which compares in a fraction of the time that the class takes.
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: Axes of (batch, channels, depth, height, width) in the order that puts the channels last, and back.
TO_LAST, TO_FIRST = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)

#: What does not go into a CUDA graph.
_TO_HOST = (
    "a tensor of the GPU's would be copied to the CPU's memory. Take a layer, or weights in the CPU's memory, whose "
    "packed form the GPU keeps"
)

#: Alignment in bytes that TensorFlow's kernels count on.
_TENSORFLOW_ALIGNMENT = 64


class Source(NamedTuple):
    """An input tensor.

    Attributes:
        shape: its shape.
        numpy: gives it as a NumPy array, without a copy where possible; possibly read-only.
        restore: turns a NumPy array, of a GPU's tensor one of its library, into the caller's kind, without a copy where
            possible.
        gpu: the tensor where it lies in a GPU's memory; then `numpy` refuses.
        out: memory for the result of a convolution on the CPU, C-contiguous, of its shape and type, shared with nothing
            that is read; None for memory of this package's.
    """

    shape: tuple[int, ...]
    numpy: Callable[[], np.ndarray]
    restore: Callable[[Any], Any]
    gpu: GpuTensor | None = None
    out: np.ndarray | None = None


def wrap(value: Any) -> Source:
    """`value` as a :class:`Source`.

    Raises:
        TypeError: `value` is no array or tensor, or holds something other than numbers.
        ValueError: its memory is neither the CPU's nor a GPU's of NVIDIA.
    """
    if isinstance(value, np.ndarray):
        return _numpy_source(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        _check_torch(value, torch)
        return _torch_source(value, torch) if arrays.number_of(value) is None else _gpu_source(value)
    if arrays.on_gpu(value):
        return _gpu_source(value)
    module = type(value).__module__.partition(".")[0]
    if module in ("jax", "jaxlib"):
        return _array_source(value, _jax_restore)
    if module == "tensorflow":
        return _array_source(value, functools.partial(_tensorflow_restore, value))
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        return _dlpack_source(value)
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        return _array_source(value, _identity)
    raise TypeError(f"Expected an array or tensor. Received: {_shorten(value)} (of type {type(value)})")


def host_array(source: Source) -> np.ndarray:
    """What a source holds; from a GPU's memory a copy, once the library's current stream is done with the tensor.

    Raises:
        TypeError: the tensor on a GPU is of an unknown library.
        RuntimeError: a CUDA graph is being captured there.
        tvm_conv3d.runtime.cuda.driver.CudaError: the GPU refuses it.
    """
    tensor = source.gpu
    if tensor is None:
        return source.numpy()
    stream = arrays.library_of(tensor.value).stream(tensor.device)
    driver.check_not_capturing(tensor.device, stream, _TO_HOST)
    prepared = arrays.prepared(tensor, tensor.dtype)
    driver.get().synchronize(tensor.device, stream)
    array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
    driver.get().download(tensor.device, array, prepared.address)
    return array


def prepare(
    array: np.ndarray,
    dtype: str,
    empty: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray] = output_pool.empty,
) -> np.ndarray:
    """`array` as C-contiguous, aligned, native elements of `dtype`; itself where it is that already.

    Args:
        array: of any strides and real type.
        dtype: float32, float64, float16 or bfloat16.
        empty: gives the memory of a copy: of results, unless copies are of other sizes than these.

    Raises:
        TypeError: it holds something other than real numbers or booleans.
    """
    check_real(array.dtype)
    wanted = numpy_dtype(dtype)
    flags = array.flags
    fits = array.dtype == wanted and flags.c_contiguous and flags.aligned
    return array if fits else conversion.contiguous(array, wanted, empty)


def check_real(dtype: np.dtype, what: str = "The input") -> None:
    """Raises TypeError unless `dtype` is one of real numbers or booleans."""
    if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
        raise TypeError(f"{what} must hold real numbers. Received: dtype={dtype}. Cast it first.")


def at_hand(source: Source) -> Source:
    """The same with the array made once, where it is in the CPU's memory."""
    if source.gpu is not None:
        return source
    array = source.numpy()
    return Source(source.shape, lambda: array, source.restore)


def channels_inside(source: Source) -> Source | None:
    """A source of (batch, channels, depth, height, width) as it lies in memory where the channels lie innermost.

    Returns:
        A view of (batch, depth, height, width, channels), whose results are restored as views of the source's order;
        None where the channels lie outside.
    """
    strides = source.numpy().strides if source.gpu is None else source.gpu.strides
    return with_channels_last(source) if channels_lie_inside(source.shape, strides) else None


def with_channels_last(source: Source) -> Source:
    """A source of (batch, channels, depth, height, width) as (batch, depth, height, width, channels).

    It is a view where its library has views; results are restored in the source's order.
    """
    if source.gpu is not None:
        permute = arrays.library_of(source.gpu.value).permute
        view = _gpu_source(permute(source.gpu.value, TO_LAST))
        return view._replace(restore=lambda result: source.restore(permute(result, TO_FIRST)))
    array = source.numpy().transpose(TO_LAST)
    return Source(array.shape, lambda: array, lambda result: source.restore(result.transpose(TO_FIRST)))


def channels_lie_inside(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether torch would call it channels_last_3d: axes of one element have strides that tell, too."""
    if strides[1] > strides[4] or strides[1] <= 0 or 0 in shape:
        return False
    least = 0
    for axis in (1, 4, 3, 2):
        if strides[axis] < least:
            return False
        least = strides[axis] * shape[axis]
    # of a dense (batch, 1, 1, 1, 1) nothing tells
    return strides[0] >= least != strides[1]


class _WritableAlias:
    """Read-only memory under an interface that does not say so: kernels only read their inputs."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def exportable(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same memory in another shape, in a form that NumPy agrees to export by DLPack."""
    if array.dtype == _BFLOAT16:
        array = array.view(np.uint16)
    if not array.flags.writeable:
        array = np.asarray(_WritableAlias(array))
    return array.reshape(shape)


def exported(array: np.ndarray, shape: tuple[int, ...] | None = None) -> Any:
    """The same memory, maybe in another shape, as compiled functions take it."""
    return _from_dlpack()(exportable(array, array.shape if shape is None else shape))


@functools.cache
def _from_dlpack() -> Callable[[Any], Any]:
    # asked for once: hot calls feel an import statement
    import tvm_ffi

    return tvm_ffi.from_dlpack


def _numpy_source(array: np.ndarray) -> Source:
    """Of an array, or of a subclass's data, as NumPy's own functions of plain arrays take them."""
    plain = np.asarray(array)
    return Source(plain.shape, lambda: plain, _identity)


def _gpu_source(value: Any) -> Source:
    tensor = arrays.look(value)

    def numpy() -> np.ndarray:
        raise ValueError(
            f"This is done in CPU memory only. Received: {type(value)} on GPU {tensor.device}. Copy it first."
        )

    torch = sys.modules.get("torch")
    subclass = torch is not None and isinstance(value, torch.Tensor) and type(value) is not torch.Tensor
    return Source(tensor.shape, numpy, (lambda result: convolved(value, result)) if subclass else _identity, tensor)


def _check_torch(tensor: Any, torch: Any) -> None:
    """Refuses torch tensors that no kernel can read."""
    if not (tensor.is_cpu or tensor.is_cuda):
        raise ValueError(
            f"The input must be in the memory of the CPU or a CUDA GPU. Received: a torch tensor on {tensor.device}. "
            "Use x.cpu()."
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"The input must be dense. Received: a torch tensor of layout {tensor.layout}.")
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(
            "The input must be a tensor with memory of its own. "
            f"Received: {type(tensor)}, which wraps others (it has a __torch_dispatch__). Unwrap it first."
        )


def _torch_source(tensor: Any, torch: Any) -> Source:
    threads.torch_is_used()

    def numpy() -> np.ndarray:
        # a subclass would make each step one of its own
        with torch._C.DisableTorchFunctionSubclass():
            if tensor.dtype == torch.bfloat16:
                return tensor.detach().resolve_neg().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            # detached, and as the values that it shows
            return tensor.numpy(force=True)

    def restore(array: np.ndarray) -> Any:
        result = torch_tensor(array)
        return result if type(tensor) is torch.Tensor else convolved(tensor, result)

    return Source(tuple(tensor.shape), numpy, restore)


def torch_tensor(array: np.ndarray) -> Any:
    """An array of the CPU's as torch's tensor, in the same memory; torch is there."""
    torch = sys.modules["torch"]
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def convolved(tensor: Any, result: Any) -> Any:
    """The result of a torch tensor, as what the tensor's class makes of it: itself with attributes, or a plain one.

    Subclasses see this function in their `__torch_function__`, as they see torch's own functions.
    """
    overrides = sys.modules["torch"].overrides
    if overrides.has_torch_function_unary(tensor):
        return overrides.handle_torch_function(convolved, (tensor,), tensor, result)
    return result


def _jax_restore(array: np.ndarray) -> Any:
    # device_put may alias the memory; nobody else holds it
    return sys.modules["jax"].device_put(array)


def _tensorflow_restore(tensor: Any, array: np.ndarray) -> Any:
    tensorflow = sys.modules["tensorflow"]
    address, _ = array.__array_interface__["data"]
    fits = array.size and address % _TENSORFLOW_ALIGNMENT == 0 and array.dtype != ml_dtypes.bfloat16
    if fits and "CPU" in tensor.device:
        return tensorflow.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tensorflow.convert_to_tensor(array)


def _array_source(value: Any, restore: Callable[[np.ndarray], Any]) -> Source:
    """Of objects that NumPy converts by `__array__`."""
    array = np.asarray(value)
    return Source(array.shape, lambda: array, restore)


def _dlpack_source(value: Any) -> Source:
    device, number = value.__dlpack_device__()
    if int(device) != _DLPACK_CPU:
        raise ValueError(
            "The input must be in the memory of the CPU or a CUDA GPU. "
            f"Received: {type(value)} on DLPack device {(int(device), number)}."
        )
    try:
        array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):
        # bfloat16 and read-only memory are refused by some exporters
        array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)

    def restore(result: np.ndarray) -> Any:
        if hasattr(value, "__array_namespace__"):
            return value.__array_namespace__().from_dlpack(result)
        return _tvm_restore(result)

    return Source(array.shape, lambda: array, restore)


def _tvm_restore(array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        import tvm

        tensor = tvm.runtime.empty(array.shape, "bfloat16")
        tensor.copyfrom(array)
        return tensor
    import tvm_ffi

    return tvm_ffi.from_dlpack(array)


def _identity(array: np.ndarray) -> np.ndarray:
    return array


def _shorten(value: Any, longest: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "…"
