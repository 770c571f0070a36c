"""The call on a GPU: input as it lies there, weights brought there once, the result beside the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.argument import OUT, PACK, RESIDUAL, X
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import interchange, packing
from tvm_conv3d.runtime.backend import Convolutions
from tvm_conv3d.runtime.cuda import arrays, driver, kernels
from tvm_conv3d.runtime.cuda.arrays import GpuTensor
from tvm_conv3d.runtime.cuda.kernels import Kernels, Memory
from tvm_conv3d.runtime.gpu_weight_gradient import GpuWeightGradient, without_products
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.runtime.loader import Loaded, get_loaded
from tvm_conv3d.runtime.weights import Packed, Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import process
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.target.description import Target

#: Weights as kernels take them: blocks of the GPU's memory, by name.
_Form = Mapping[str, Memory]

#: What does not go into a CUDA graph.
_FIRST = (
    "this call would load its kernels or pack its weights first, which a capture does not allow. Call once before the "
    "capture, with the same shapes and weights"
)
_COPY = "`residual` would be copied to the GPU. Copy it there before the capture, by the library of the input"

#: Packed weights that CUDA graphs read whenever they are replayed, for good: nobody tells when a graph is gone.
_of_graphs: dict[int, Packed[_Form]] = process.keep("gpu_backend: weights of CUDA graphs", {})


class GpuBackend:
    """NVIDIA's GPUs; see :class:`tvm_conv3d.runtime.backend.Backend`."""

    def prepare(self, plan: Plan, target: Target, device: int) -> GpuCall:
        """The plan's kernels; a GPU gets them at their first launch."""
        spec = plan.spec
        form = repr((plan.variant, spec.kernel_shape, spec.groups, canonicalize(spec).weights_identity))
        return GpuCall(plan, get_loaded(plan, target), device, (device, plan.algorithm, form))

    def prepare_gradient(self, plan: Plan, target: Target, device: int) -> GpuWeightGradient:
        """Likewise."""
        return GpuWeightGradient(plan, get_loaded(plan, target), device)

    def without_products(self, spec: Conv3DSpec, source: Source) -> tuple[Any, Any | None]:
        """Zeros, beside the source or in arrays."""
        return without_products(spec, source)

    def without_elements(self, spec: Conv3DSpec, source: Source) -> Any:
        """A tensor beside the source, or an array."""
        if source.gpu is None:
            return np.empty(spec.output_shape, numpy_dtype(spec.dtype))
        return arrays.library_of(source.gpu.value).empty(spec.output_shape, spec.dtype, source.gpu.value)


@dataclass(frozen=True, eq=False)
class GpuCall:
    """A convolution on one GPU; see :class:`tvm_conv3d.runtime.backend.PreparedCall`.

    Attributes:
        loaded: the plan's machine code.
        device: number of the GPU.
    """

    plan: Plan
    loaded: Loaded
    device: int
    layout: tuple[int, str, str]

    def pack(self, weights: Weights) -> Packed[_Form]:
        """The weights, packed on the GPU."""
        stored = packing.stored(self.plan.spec, weights.kernel, weights.bias)
        form = kernels.pack(self.device, self.loaded.functions[PACK], stored)
        return Packed(weights.version, form, sum(memory.size for memory in form.values()))

    def run(
        self, source: Source, weights: Weights, residual: Source | None, convolutions: Convolutions[GpuCall]
    ) -> Any:
        """The result: of a tensor on this GPU beside it, of an array as one.

        NaN and infinity need no further convolution: kernels compute what their algorithm can't do by the definition.
        """
        if source.gpu is None:
            x = interchange.prepare(source.numpy(), self.plan.spec.dtype)
            return self._of_array(x, convolutions.packed(self, weights).form, residual)
        return self._of_tensor(source.gpu, weights, residual, convolutions)

    def _of_tensor(
        self, tensor: GpuTensor, weights: Weights, residual: Source | None, convolutions: Convolutions[GpuCall]
    ) -> Any:
        """The result of the tensor's library, queued on its current stream.

        A residual operand from elsewhere is copied to the tensor's GPU, and the result waited for. The result is fresh:
        it shares no memory with what is read, as kernels may store results before they have read all of that.
        """
        spec, library, device = self.plan.spec, arrays.library_of(tensor.value), self.device
        x, stream = arrays.prepared(tensor, spec.dtype), library.stream(device)
        packed = self._packed(weights, stream, convolutions)
        result = library.empty(spec.output_shape, spec.dtype, tensor.value)
        given = {name: memory.address for name, memory in packed.form.items()}
        given[X], given[OUT] = x.address, library.address(result)
        added = None if residual is None else _beside(tensor, residual, spec)
        if added is not None:
            given[RESIDUAL] = added.address
        self._kernels.run_beside(tensor, stream, given)
        if library.waits or isinstance(added, Memory):
            driver.get().synchronize(device, stream)
        return result

    def _packed(self, weights: Weights, stream: int, convolutions: Convolutions[GpuCall]) -> Packed[_Form]:
        """The packed weights of a call on a stream, and the kernels loaded.

        Raises:
            RuntimeError: the stream is being captured into a CUDA graph, and they are not there yet.
        """
        packed = convolutions.kept(self, weights)
        if packed is None or not self._kernels.is_on(self.device):
            driver.check_not_capturing(self.device, stream, _FIRST)
            packed = convolutions.packed(self, weights)
        if driver.get().is_capturing(self.device, stream):
            _of_graphs[id(packed)] = packed
        return packed

    def _of_array(self, x: np.ndarray, packed: _Form, residual: Source | None) -> np.ndarray:
        """The result for an array in the CPU's memory: it is copied to the GPU, and the result back."""
        spec, code, device = self.plan.spec, self._kernels, self.device
        out = np.empty(spec.output_shape, x.dtype)
        scratch = Memory(device, code.scratch)
        memory = {**packed, X: Memory.holding(device, x), OUT: Memory(device, out.nbytes)}
        if residual is not None:
            added = interchange.prepare(interchange.host_array(residual), spec.dtype)
            memory[RESIDUAL] = Memory.holding(device, added)
        addresses = {name: block.address for name, block in memory.items()}
        code(device, 0, addresses | code.workspaces(scratch.address))
        # on the default stream, as the copy: it waits for the kernels
        driver.get().download(device, out, memory[OUT].address)
        return out

    @property
    def _kernels(self) -> Kernels:
        return self.loaded.main.code


def _beside(tensor: GpuTensor, residual: Source, spec: Conv3DSpec) -> GpuTensor | Memory:
    """A residual operand as kernels on the current stream of the tensor's library may read it.

    Returns:
        One of the same library on the same GPU as it lies there, or what its library makes of it; else a copy.
    """
    there = residual.gpu
    if (
        there is not None
        and there.device == tensor.device
        and arrays.library_of(there.value) is arrays.library_of(tensor.value)
    ):
        return arrays.prepared(there, spec.dtype)
    driver.check_not_capturing(tensor.device, arrays.library_of(tensor.value).stream(tensor.device), _COPY)
    copy = Memory.holding(tensor.device, interchange.prepare(interchange.host_array(residual), spec.dtype))
    # streams of libraries do not wait for the default one
    driver.get().synchronize(tensor.device, 0)
    return copy
