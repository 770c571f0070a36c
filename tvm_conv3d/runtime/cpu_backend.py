"""The call on this CPU: input read where it lies, loops on the process's threads, NaN where the definition has it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, FLAGS, KERNEL, OUT, RESIDUAL, X
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import exit_guard, interchange, nonfinite, output_pool, packing, threads
from tvm_conv3d.runtime.backend import Convolutions
from tvm_conv3d.runtime.cpu_weight_gradient import WeightGradientCall, without_products
from tvm_conv3d.runtime.interchange import Source
from tvm_conv3d.runtime.loader import Entry, Loaded, get_loaded, get_packing
from tvm_conv3d.runtime.nonfinite import Operands
from tvm_conv3d.runtime.reserve import reserve
from tvm_conv3d.runtime.weights import Packed, Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.description import Target

#: What a call of a convolution has at hand, in this order.
_BOUND = (X, KERNEL, BIAS, RESIDUAL, OUT, FLAGS)

#: Weights as compiled functions take them: kernel and bias.
_Form = tuple[Any, Any]


class CpuBackend:
    """This machine's CPU; see :class:`tvm_conv3d.runtime.backend.Backend`."""

    def prepare(self, plan: Plan, target: Target, device: int) -> CpuCall:
        """The plan's code, linked into this process."""
        loaded = get_loaded(plan, target)
        shapes = [argument.shape for argument in loaded.main.function.of("weights", "bias")]
        layout = repr((plan.algorithm, shapes, canonicalize(plan.spec).weights_identity))
        return CpuCall(plan, target, loaded, _Code.of(loaded.main), layout)

    def prepare_gradient(self, plan: Plan, target: Target, device: int) -> WeightGradientCall:
        """Likewise."""
        return WeightGradientCall(plan, get_loaded(plan, target))

    def without_products(self, spec: Conv3DSpec, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Zeros."""
        return without_products(spec, source)

    def without_elements(self, spec: Conv3DSpec, source: Source) -> np.ndarray:
        """An array."""
        return np.empty(spec.output_shape, interchange.prepare(source.numpy(), spec.dtype).dtype)


class _Code(NamedTuple):
    """How a compiled function is called: bound once, as a call of a tenth of a millisecond feels each look-up.

    Attributes:
        function: it.
        ordered: puts what :data:`_BOUND` names into the order of its arguments.
        x, out: shapes of input and output, as the code sees them.
        residual, flags: shapes of its residual operand and its flags, where it has some.
    """

    function: Any
    ordered: Callable[[Sequence[Any]], Sequence[Any]]
    x: tuple[int, ...]
    out: tuple[int, ...]
    residual: tuple[int, ...] | None
    flags: tuple[int, ...] | None

    @classmethod
    def of(cls, entry: Entry) -> _Code:
        """That of a convolution."""
        function = entry.function
        residual, flags = (None if a is None else a.shape for a in map(function.get, (RESIDUAL, FLAGS)))
        return cls(entry.code, function.binder(*_BOUND), function[X].shape, function[OUT].shape, residual, flags)


@dataclass(frozen=True, eq=False)
class CpuCall:
    """A convolution on this CPU; see :class:`tvm_conv3d.runtime.backend.PreparedCall`.

    Attributes:
        target: of the plan's code.
        loaded: the code.
        code: of the same.
        doubts: whether data or weights are not finite, as far as earlier calls know.
    """

    plan: Plan
    target: Target
    loaded: Loaded
    code: _Code
    layout: Hashable
    doubts: nonfinite.Doubts = field(default_factory=nonfinite.Doubts)

    def pack(self, weights: Weights) -> Packed[_Form]:
        """The weights, packed by the process's threads; sizes of one layout share their code."""
        stored = packing.stored(self.plan.spec, weights.kernel, weights.bias)
        arrays = packing.on_cpu(get_packing(self.loaded, self.plan, self.target), stored)
        function = self.loaded.main.function
        kernel, bias = (interchange.exported(arrays[name], function[name].shape) for name in (KERNEL, BIAS))
        return Packed(weights.version, (kernel, bias), sum(array.nbytes for array in arrays.values()))

    def run(
        self, source: Source, weights: Weights, residual: Source | None, convolutions: Convolutions[CpuCall]
    ) -> np.ndarray:
        """The result, in the source's memory for it, or that of the output pool."""
        spec = self.plan.spec
        x = interchange.prepare(source.numpy(), spec.dtype)
        added = None if residual is None else interchange.prepare(interchange.host_array(residual), spec.dtype)
        out = output_pool.empty(spec.output_shape, x.dtype) if source.out is None else source.out
        with exit_guard.in_flight():
            failed = not self.doubts
            if not (failed and self.fill(out, x, added, weights, convolutions)):
                self._fill_in_doubt(Operands(out, x, added, weights), failed, convolutions)
        return out

    def fill(
        self,
        out: np.ndarray,
        x: np.ndarray,
        residual: np.ndarray | None,
        weights: Weights,
        convolutions: Convolutions[CpuCall],
    ) -> bool:
        """Fills `out` with what the compiled code computes.

        Args:
            out: C-contiguous, of the spec's output shape and type; it shares no memory with what is read, as the code
                may store results before it has read all of that.
            x: as `out`, of the input's shape.
            residual: as `out`, where the spec adds one.
            weights: of the spec's shapes.
            convolutions: of the executor.

        Returns:
            False where the code says that its result can't be trusted.
        """
        (kernel, bias), code = convolutions.packed(self, weights).form, self.code
        reserve(self.loaded, self.loaded.workspace)
        given, result = interchange.exported(x, code.x), interchange.exported(out, code.out)
        added = None if residual is None else interchange.exported(residual, code.residual)
        if code.flags is None:
            threads.run(code.function, *code.ordered((given, kernel, bias, added, result, None)))
            return True
        flags = np.empty(code.flags, self.plan.spec.accumulator)
        told = interchange.exported(flags)
        threads.run(code.function, *code.ordered((given, kernel, bias, added, result, told)))
        return bool(np.isfinite(flags).all())

    def _fill_in_doubt(self, operands: Operands, failed: bool, convolutions: Convolutions[CpuCall]) -> None:
        """Fills the output where data or weights may hold NaN or infinity: Winograd's spread them over its tiles."""
        spec = self.plan.spec
        if not nonfinite.fill(operands, spec, self.doubts, failed, _Steps(self, convolutions)):
            convolutions.prepared(spec, exact=True).fill(*operands, convolutions)


class _Steps(NamedTuple):
    """See :class:`tvm_conv3d.runtime.nonfinite.Steps`."""

    call: CpuCall
    convolutions: Convolutions[CpuCall]

    def fill(self, operands: Operands) -> bool:
        return self.call.fill(*operands, self.convolutions)

    def convolve_signs(self, signs: np.ndarray, weights: Weights) -> np.ndarray:
        spec = nonfinite.sums_spec(self.call.plan.spec)
        call = self.convolutions.prepared(spec, exact=False)
        if not nonfinite.sums_are_whole(call.plan):
            call = self.convolutions.prepared(spec, exact=True)
        out = output_pool.empty(spec.output_shape, np.dtype(np.float32))
        # beside the weights themselves, of which these are the signs
        replace(call, layout=("signs", call.layout)).fill(out, signs, None, weights, self.convolutions)
        return out
