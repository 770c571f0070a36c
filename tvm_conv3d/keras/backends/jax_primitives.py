"""Primitives of JAX of one result, made of functions; what their derivatives are is told by who makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def primitive(name: str, compute: Callable[..., Any], shape: Callable[[Any], tuple[int, ...]]) -> Any:
    """A primitive of two arrays and a parameter `call`, compiled as what `compute` does; one by one under `jax.vmap`.

    Args:
        name: for people.
        compute: gives the result, of the first array's type.
        shape: that of the result, of `call`.
    """
    made = Primitive(f"tvm_conv3d_{name}")

    def typed(first: Any, second: Any, *, call: Any) -> Any:
        return jax.core.ShapedArray(shape(call), first.dtype)

    made.def_impl(compute)
    made.def_abstract_eval(typed)
    mlir.register_lowering(made, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[made] = functools.partial(_mapped, made)
    return made


def _mapped(made: Any, given: tuple[Any, Any], axes: tuple[int | None, int | None], *, call: Any) -> Any:
    mapped = [jax.numpy.moveaxis(array, axis, 0) for array, axis in zip(given, axes, strict=True) if axis is not None]

    def one(parts: list[Any]) -> Any:
        left = iter(parts)
        both = (array if axis is None else next(left) for array, axis in zip(given, axes, strict=True))
        return made.bind(*both, call=call)

    return jax.lax.map(one, mapped), 0
