"""A function of Python's as a target of XLA's calls on the CPU (`jax.ffi`), which reads and writes XLA's buffers.

XLA hands over a frame of C structures (`xla/ffi/api/c_api.h`, version 0); what is read of it is described here.
`jax.pure_callback` would copy each buffer several times.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tvm_conv3d.support.dtypes import numpy_dtype

#: XLA's numbers of element types.
_DTYPES = {6: "uint8", 10: "float16", 11: "float32", 12: "float64", 16: "bfloat16"}

#: XLA's number of the extension that asks for a handler's version, and of the error of an invalid argument.
_METADATA, _INVALID_ARGUMENT = 1, 3

#: What computes a call: its text, its inputs, and the memory of its results.
Target = Callable[[str, list[np.ndarray], list[np.ndarray]], None]


class _Extension(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )

    def array(self) -> np.ndarray:
        """Its memory."""
        dtype, shape = numpy_dtype(_DTYPES[self.dtype]), tuple(self.dims[: self.rank])
        count = math.prod(shape) * dtype.itemsize
        if count == 0:
            # XLA has no memory for it
            return np.empty(shape, dtype)
        memory = (ctypes.c_uint8 * count).from_address(self.data)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("kinds", ctypes.POINTER(ctypes.c_int)),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )

    def arrays(self) -> list[np.ndarray]:
        """The memory of all."""
        return [self.buffers[number].contents.array() for number in range(self.count)]


class _Text(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("kinds", ctypes.POINTER(ctypes.c_int)),
        ("names", ctypes.POINTER(ctypes.POINTER(_Text))),
        ("values", ctypes.POINTER(ctypes.POINTER(_Text))),
    )


class _Error(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Error))),
    )


class _Frame(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("inputs", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))


def register(name: str, target: Target) -> Any:
    """Makes `target` known to XLA as `name`; what is returned must be kept as long as the process may call it.

    Calls have one attribute, a text, which goes to the target.
    """

    @_HANDLER
    def handler(frame: Any) -> int | None:
        call = frame.contents
        if call.extensions and call.extensions.contents.kind == _METADATA:
            extension = ctypes.cast(call.extensions, ctypes.POINTER(_MetadataExtension)).contents
            version = call.api.contents.version
            extension.metadata.contents.version.major = version.major
            extension.metadata.contents.version.minor = version.minor
            return None
        try:
            text = call.attributes.values[0].contents
            target(ctypes.string_at(text.data, text.length).decode(), call.inputs.arrays(), call.results.arrays())
        # nothing may leave a function that C calls
        except BaseException as error:
            told = _Error(ctypes.sizeof(_Error), None, f"{type(error).__name__}: {error}".encode(), _INVALID_ARGUMENT)
            made: int = call.api.contents.create_error(ctypes.byref(told))
            return made
        return None

    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.cast(handler, ctypes.c_void_p).value), platform="cpu")
    return handler
