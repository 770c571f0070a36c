"""Inputs of the functional form, in all strides, and the oracle's results."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from problems import BOUNDS, WINOGRAD_BOUND, numpy_dtype
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import output_pool
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads

SIZE, CHANNELS, FILTERS, KERNEL = (6, 7, 9), 4, 6, (3, 2, 3)
RNG = np.random.default_rng(0)


def data(dtype: str = "float32", groups: int = 1, data_format: str = CHANNELS_LAST) -> tuple[np.ndarray, ...]:
    """An input of two samples, a kernel and a bias."""
    shape = (2, *SIZE, CHANNELS) if data_format == CHANNELS_LAST else (2, CHANNELS, *SIZE)
    shapes = (shape, (*KERNEL, CHANNELS // groups, FILTERS), (FILTERS,))
    x, w, b = (RNG.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in shapes)
    return x, w, b


def expected(x: Any, w: Any, b: Any, pads: Any = ((0, 0),) * 3, data_format: str = CHANNELS_LAST, **more: Any) -> Any:
    """The oracle's result; negative pads are cut off beforehand."""
    x = np.asarray(x).astype(np.float64)
    if data_format == CHANNELS_FIRST:
        x = np.moveaxis(x, 1, -1)
    for axis, pair in enumerate(pads, 1):
        x = np.take(x, np.arange(max(0, -pair[0]), x.shape[axis] - max(0, -pair[1])), axis)
    kept = tuple(Pads(*(max(0, pad) for pad in pair)) for pair in pads)
    spec = Conv3DSpec(x.shape[0], x.shape[1:4], x.shape[4], w.shape[4], w.shape[:3], pads=kept, **more)
    result = oracle.convolve(spec, x, np.asarray(w), None if b is None else np.asarray(b))
    return np.moveaxis(result, -1, 1) if data_format == CHANNELS_FIRST else result


def check(result: Any, wanted: np.ndarray, dtype: str = "float32") -> None:
    assert result.shape == wanted.shape
    assert oracle.relative_error(np.asarray(result), wanted) < max(BOUNDS[dtype], WINOGRAD_BOUND)


def inside(x: np.ndarray) -> np.ndarray:
    """(N, C, D, H, W) with the channels innermost in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3)


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a second call takes at most, its result included."""
    call()
    # memory of the first call's copies would be used again, unseen
    output_pool.release()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


#: Arrays with the values of their argument.
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "flipped": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "big endian": lambda a: a.astype(">f4"),
    "misaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape),
}
