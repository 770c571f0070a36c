"""Weights in a plan's layout, as the plan's compiled code packs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, KERNEL, PACKED_BIAS, PACKED_KERNEL
from tvm_conv3d.runtime import interchange, threads
from tvm_conv3d.spec import Conv3DSpec

if TYPE_CHECKING:
    from tvm_conv3d.runtime.loader import Entry


def stored(spec: Conv3DSpec, kernel: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """Weights as the function `pack` takes them, by name: contiguous elements of the spec's type.

    Args:
        spec: the problem.
        kernel: of `spec.kernel_shape`.
        bias: of `spec.result_channels` values, None where the spec has none.
    """
    weights = {KERNEL: kernel} if bias is None else {KERNEL: kernel, BIAS: bias}
    return {name: interchange.prepare(array, spec.dtype, np.empty) for name, array in weights.items()}


def on_cpu(entry: Entry, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights packed by this process's threads, by the convolution's names of them.

    Args:
        entry: the function `pack`.
        weights: of :func:`stored`.

    Raises:
        MemoryError: there is none for the packed ones.
    """
    function = entry.function
    packed = {a.name: np.empty(a.shape, a.dtype) for a in function.of("output")}
    arrays = {**weights, **packed}
    threads.run(entry.code, *function.ordered({name: interchange.exported(array) for name, array in arrays.items()}))
    return {KERNEL: packed[PACKED_KERNEL], BIAS: packed[PACKED_BIAS]}
