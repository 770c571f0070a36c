"""The gradient of weights on this CPU: input and gradient read where they lie, loops on the process's threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT, GRADIENT, OUT, X
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import exit_guard, interchange, output_pool, threads
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.runtime.loader import Loaded
from tvm_conv3d.runtime.reserve import reserve
from tvm_conv3d.spec import Conv3DSpec


def without_products(spec: Conv3DSpec, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """The gradients where there are no positions, and all sums are empty.

    Raises:
        TypeError: the source holds no real numbers.
    """
    dtype = interchange.prepare(source.numpy(), spec.dtype).dtype
    return np.zeros(spec.kernel_shape, dtype), np.zeros(spec.filters, dtype) if spec.bias else None


@dataclass(frozen=True, eq=False)
class WeightGradientCall:
    """A gradient of weights on this CPU; see :class:`tvm_conv3d.runtime.backend.PreparedGradient`.

    Attributes:
        plan: what the code computes.
        loaded: the code.
    """

    plan: Plan
    loaded: Loaded

    def run(self, source: Source, gradient: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """The results, in fresh memory."""
        spec, given = self.plan.spec, ((X, source), (GRADIENT, gradient))
        arrays = {name: interchange.prepare(each.numpy(), spec.dtype) for name, each in given}
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
