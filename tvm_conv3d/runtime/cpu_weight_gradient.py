"""The gradient of weights on this CPU: input and gradient read where they lie, loops on the process's threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT, GRADIENT, OUT, X
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import exit_guard, interchange, output_pool, threads
from tvm_conv3d.runtime.loader import Loaded
from tvm_conv3d.runtime.reserve import reserve
from tvm_conv3d.spec import Conv3DSpec


def without_products(spec: Conv3DSpec, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradients where there are no positions, and all sums are empty."""
    return np.zeros(spec.kernel_shape, dtype), np.zeros(spec.filters, dtype) if spec.bias else None


@dataclass(frozen=True, eq=False)
class WeightGradientCall:
    """A gradient of weights with its machine code: all that calls of one spec need but arrays.

    Attributes:
        plan: what the code computes.
        loaded: the code.
    """

    plan: Plan
    loaded: Loaded

    def run(self, x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The gradients of the weights and, where the spec has one, of the bias, in fresh memory.

        Args:
            x: of the spec's input shape; cast to its type.
            gradient: of its output shape, likewise.

        Raises:
            TypeError: they hold no real numbers.
            MemoryError: there is none for the results or the intermediates.
        """
        spec = self.plan.spec
        arrays = {name: interchange.prepare(array, spec.dtype) for name, array in ((X, x), (GRADIENT, gradient))}
        dtype = arrays[X].dtype
        arrays[OUT] = output_pool.empty(spec.kernel_shape, dtype)
        if spec.bias:
            arrays[BIAS_GRADIENT] = np.empty(spec.filters, dtype)
        with exit_guard.in_flight():
            reserve(self.loaded, self.loaded.workspace)
            entry = self.loaded.main
            views = [interchange.exported(arrays[a.name], a.shape) for a in entry.function.arguments]
            threads.run(entry.code, *views)
        return arrays[OUT], arrays.get(BIAS_GRADIENT)
