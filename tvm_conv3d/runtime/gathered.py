"""Results that gather cells along each axis, by all threads: what pooling and interpolation are made of."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_conv3d.compute.shared.gathered import Form, Tables
from tvm_conv3d.runtime import exit_guard, helper_code, output_pool, threads

if TYPE_CHECKING:
    from tvm import IRModule


def gather(x: np.ndarray, tables: Tables) -> np.ndarray:
    """The result, in memory of the output pool.

    Args:
        x: (batch, depth, height, width, channels), C-contiguous, of one of the spec's element types.
        tables: of the shape and element type of `x`.

    Raises:
        MemoryError: there is none for the result.
    """
    out = output_pool.empty(tables.shape, x.dtype)
    with exit_guard.in_flight():
        threads.run(_code(tables.form), *helper_code.pointers(x, out, tables.numbers, tables.factors))
    return out


@functools.cache
def _code(form: Form) -> Any:
    identity = {"name": f"{form.kind} of gathered cells", "form": list(form)}
    return helper_code.get(identity, functools.partial(_module, form)).get_function("gather")


def _module(form: Form) -> IRModule:
    from tvm_conv3d.compute.llvm import gathered

    return gathered.module(form)
