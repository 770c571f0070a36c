"""Maxima of windows side by side on JAX, with derivatives of both modes and any order.

XLA's own gradient of them takes longer on CPUs than the convolutions around. Here each maximum's cell is noted, and the
gradient goes there.
"""

from __future__ import annotations

import ast
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters import ad

from tvm_conv3d.functional import training
from tvm_conv3d.keras.backends import xla
from tvm_conv3d.keras.backends.jax_primitives import primitive
from tvm_conv3d.spec import Triple
from tvm_conv3d.support import process

#: The calls' names in XLA.
_MAXIMA, _SPREAD = "tvm_conv3d_max_pool", "tvm_conv3d_max_pool_gradient"


class Windows(NamedTuple):
    """Windows side by side; a rest is left out.

    Attributes:
        window: depth, height and width in cells.
        shape: (batch, depth, height, width, channels) that they lie in.
    """

    window: Triple
    shape: tuple[int, ...]

    @property
    def pooled(self) -> tuple[int, ...]:
        """Of the maxima."""
        return training.pooled(self.shape, self.window)


def takes(dtype: str, windows: Windows) -> bool:
    """Whether :func:`maxima` computes them."""
    return hasattr(jax, "ffi") and 0 not in windows.pooled and training.takes(dtype, windows.window)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def maxima(windows: Windows, x: Any) -> tuple[Any, Any]:
    """The maximum of each window, and its cell in it, as :func:`tvm_conv3d.functional.training.max_pool`."""
    results = (jax.ShapeDtypeStruct(windows.pooled, x.dtype), jax.ShapeDtypeStruct(windows.pooled, np.uint8))
    found: tuple[Any, Any] = tuple(
        jax.ffi.ffi_call(_MAXIMA, results, vmap_method="sequential")(x, call=repr(windows.window))
    )
    return found


@maxima.defjvp
def _derived(windows: Windows, given: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """That of a maximum is what its cell's is."""
    y, cells = maxima(windows, *given)
    return (y, cells), (_PICKED.bind(*tangents, cells, call=windows), np.zeros(cells.shape, jax.dtypes.float0))


def _pick(whole: Any, cells: Any, *, call: Windows) -> Any:
    """What lies in the cells; only where derivatives are asked for in forward mode."""
    (kd, kh, kw), (batch, depth, height, width, channels) = call.window, call.pooled
    parts = whole[:, : depth * kd, : height * kh, : width * kw]
    parts = parts.reshape(batch, depth, kd, height, kh, width, kw, channels).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    parts = parts.reshape(*call.pooled, kd * kh * kw)
    return jax.numpy.take_along_axis(parts, cells[..., None].astype(np.int32), -1)[..., 0]


def _spread(of_maxima: Any, cells: Any, *, call: Windows) -> Any:
    """Zeros but in the cells: what :func:`_pick` is the transpose of."""
    result = jax.ShapeDtypeStruct(call.shape, of_maxima.dtype)
    return jax.ffi.ffi_call(_SPREAD, result)(of_maxima, cells, call=repr(call.window))


def _compute_maxima(text: str, given: list[np.ndarray], results: list[np.ndarray]) -> None:
    (x,), (y, cells) = given, results
    training.max_pool(x, ast.literal_eval(text), (y, cells))


def _compute_spread(text: str, given: list[np.ndarray], results: list[np.ndarray]) -> None:
    (of_maxima, cells), (out,) = given, results
    depth, height, width = out.shape[1:4]
    training.max_pool_gradient(of_maxima, cells, (depth, height, width), ast.literal_eval(text), out)


def _linear(made: Any, transposed: Any) -> None:
    """Tells the derivatives of a primitive that is linear in its first array, and what its transpose is."""

    def along(tangent: Any, _: Any, cells: Any, *, call: Windows) -> Any:
        return made.bind(tangent, cells, call=call)

    def back(outer: Any, first: Any, cells: Any, *, call: Windows) -> list[Any]:
        zero = type(outer) is ad.Zero
        return [ad.Zero(first.aval) if zero else transposed.bind(outer, cells, call=call), None]

    ad.defjvp(made, along, None)
    ad.primitive_transposes[made] = back


_PICKED = primitive("picked", _pick, lambda windows: windows.pooled)
_SPREAD_OUT = primitive("spread", _spread, lambda windows: windows.shape)
_linear(_PICKED, _SPREAD_OUT)
_linear(_SPREAD_OUT, _PICKED)

_HANDLERS = process.keep(
    "keras: XLA's entries of max pools",
    [xla.register(_MAXIMA, _compute_maxima), xla.register(_SPREAD, _compute_spread)] if hasattr(jax, "ffi") else [],
)
