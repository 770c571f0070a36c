"""The gradient of weights on a GPU: input and gradient as they lie there, the results beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS_GRADIENT, GRADIENT, OUT, X
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.cuda import arrays, driver
from tvm_conv3d.runtime.cuda.arrays import GpuTensor
from tvm_conv3d.runtime.cuda.kernels import Kernels, Memory
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.runtime.loader import Loaded
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.dtypes import numpy_dtype

#: What does not go into a CUDA graph.
_FIRST = (
    "this call would load its kernels first, which a capture does not allow. Call once before the capture, with the "
    "same shapes"
)
_ZEROS = "zeros for gradients without a position would be copied to the GPU"


def without_products(spec: Conv3DSpec, source: Source) -> tuple[Any, Any | None]:
    """The gradients where there are no positions, and all sums are empty.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    zeros = {name: np.zeros(shape, numpy_dtype(spec.dtype)) for name, shape in _shapes(spec).items()}
    if source.gpu is None:
        return _pair(zeros)
    tensor = source.gpu
    library, device = arrays.library_of(tensor.value), tensor.device
    stream = library.stream(device)
    driver.check_not_capturing(device, stream, _ZEROS)
    results = {name: library.empty(array.shape, spec.dtype, tensor.value) for name, array in zeros.items()}
    # what the stream is still at may be in the same memory
    driver.get().synchronize(device, stream)
    for name, array in zeros.items():
        driver.get().upload(device, library.address(results[name]), array)
    return _pair(results)


@dataclass(frozen=True, eq=False)
class GpuWeightGradient:
    """A gradient of weights on one GPU; see :class:`tvm_conv3d.runtime.backend.PreparedGradient`.

    Attributes:
        loaded: the plan's machine code.
        device: number of the GPU.
    """

    plan: Plan
    loaded: Loaded
    device: int

    def run(self, source: Source, gradient: Source) -> tuple[Any, Any | None]:
        """The results: of tensors on this GPU beside them, of arrays as such."""
        if source.gpu is not None and gradient.gpu is not None:
            return self._of_tensors(source.gpu, gradient.gpu)
        given = {X: source.numpy(), GRADIENT: gradient.numpy()}
        return self._of_arrays({name: interchange.prepare(a, self.plan.spec.dtype) for name, a in given.items()})

    def _of_tensors(self, tensor: GpuTensor, gradient: GpuTensor) -> tuple[Any, Any | None]:
        """The results of the tensors' library, queued on its current stream."""
        spec, library, code, device = self.plan.spec, arrays.library_of(tensor.value), self._kernels, self.device
        read = {name: arrays.prepared(value, spec.dtype) for name, value in ((X, tensor), (GRADIENT, gradient))}
        stream = library.stream(device)
        if not code.is_on(device):
            driver.check_not_capturing(device, stream, _FIRST)
        results = {name: library.empty(shape, spec.dtype, tensor.value) for name, shape in _shapes(spec).items()}
        given = {name: value.address for name, value in read.items()}
        given |= {name: library.address(value) for name, value in results.items()}
        code.run_beside(tensor, stream, given)
        if library.waits:
            driver.get().synchronize(device, stream)
        return _pair(results)

    def _of_arrays(self, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """The results for arrays in the CPU's memory: they are copied to the GPU, and the results back."""
        code, device, dtype = self._kernels, self.device, given[X].dtype
        results = {name: np.empty(shape, dtype) for name, shape in _shapes(self.plan.spec).items()}
        memory = {name: Memory.holding(device, array) for name, array in given.items()}
        memory |= {name: Memory(device, array.nbytes) for name, array in results.items()}
        scratch = Memory(device, code.scratch)
        addresses = {name: block.address for name, block in memory.items()}
        code(device, 0, addresses | code.workspaces(scratch.address))
        for name, array in results.items():
            # on the default stream, as the copy: it waits for the kernels
            driver.get().download(device, array, memory[name].address)
        return _pair(results)

    @property
    def _kernels(self) -> Kernels:
        return self.loaded.main.code


def _shapes(spec: Conv3DSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of the results, by name."""
    return {OUT: spec.kernel_shape, **({BIAS_GRADIENT: (spec.filters,)} if spec.bias else {})}


def _pair(results: Mapping[str, Any]) -> tuple[Any, Any | None]:
    return results[OUT], results.get(BIAS_GRADIENT)
