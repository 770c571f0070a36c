"""The call: a convolution's machine code and its packed weights, each made once, run where the input lies."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from typing import Any

from tvm_conv3d.engine import planner
from tvm_conv3d.engine.bounded import plan_within
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import exit_guard, interchange, threads
from tvm_conv3d.runtime.backend import Backend, PreparedCall, PreparedGradient
from tvm_conv3d.runtime.compatibility import check_runs_here, gpu_target, requested_target
from tvm_conv3d.runtime.cpu_backend import CpuBackend
from tvm_conv3d.runtime.cuda.arrays import GpuTensor, library_of
from tvm_conv3d.runtime.gpu_backend import GpuBackend
from tvm_conv3d.runtime.loader import at_hand
from tvm_conv3d.runtime.new_sizes import NewSizes, layer_of
from tvm_conv3d.runtime.weights import Packed, Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.description import Target

#: What a prepared call is found under: spec, threads, the GPU that holds the input or None, whether it must be exact,
#: bytes of packed weights up to which a plan is taken that need not be exact, or None.
_Key = tuple[Conv3DSpec, int, int | None, bool, int | None]

#: What a prepared gradient of weights is found under: the same without what only weights decide.
_GradientKey = tuple[Conv3DSpec, int, int | None]

#: Shapes that a layer keeps at hand, and layouts of its weights; each layout is a copy of them.
_MAX_SHAPES, _MAX_LAYOUTS = 256, 32

#: Whether Winograd's algorithm is taken: unless the kernel is structured, never, or even then.
ACCURACIES = ("default", "strict", "fast")


class Executor:
    """Runs the convolutions of one layer, or of all that share its options; safe to call from several threads.

    Args:
        target: what to compile for: None for this machine, else see
            :func:`tvm_conv3d.runtime.compatibility.requested_target`.
        accuracy: "strict" for the products of the definition only, no Winograd; "default" for these where a call's
            kernel is structured (:mod:`tvm_conv3d.runtime.structure`); "fast" for Winograd even then.
        workspace_limit: bytes that intermediates may take for each thread.
        most_specs: that are kept at hand; None for as many as a layer meets.

    Raises:
        ValueError: `accuracy` or `workspace_limit` is something else.
    """

    def __init__(
        self,
        target: Any = None,
        accuracy: str = "default",
        workspace_limit: int = planner.DEFAULT_LIMIT,
        most_specs: int | None = None,
    ) -> None:
        if accuracy not in ACCURACIES:
            raise ValueError(f"`accuracy` must be one of {', '.join(ACCURACIES)}. Received: accuracy={accuracy!r}")
        self._requested = target
        self._accuracy = accuracy
        self._limit = planner.check_limit(workspace_limit)
        self._most_specs = most_specs or _MAX_SHAPES
        self._make_tables()

    def _make_tables(self) -> None:
        self._lock = ForkSafeLock()
        self._calls: Recent[_Key, PreparedCall] = Recent(self._most_specs)
        self._gradients: Recent[_GradientKey, PreparedGradient] = Recent(self._most_specs)
        self._packed: Recent[Hashable, Packed] = Recent(_MAX_LAYOUTS)
        self._sizes = NewSizes(self._most_specs)
        self._targets: Recent[int, Target] = Recent(_MAX_SHAPES)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_requested", "_accuracy", "_limit", "_most_specs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_tables()

    def plan_for(self, spec: Conv3DSpec, structured: bool = False) -> Plan:
        """How this executor computes `spec`: algorithm, decisions and their origin; compiles nothing.

        Args:
            spec: the problem.
            structured: whether the kernel's values carry exact meaning.

        Raises:
            ValueError: the target is not known, or no algorithm takes the spec within the limit of workspace.
        """
        count, exact = threads.get_num_threads(), self._exact(structured)
        call = self._calls.get((spec, count, None, exact, None))
        return call.plan if call else self._make_plan(spec, self._target(count), exact)

    def convolve(
        self,
        spec: Conv3DSpec,
        source: interchange.Source,
        weights: Weights,
        residual: interchange.Source | None = None,
        packed_limit: int | None = None,
    ) -> Any:
        """The convolution of `source`, in a fresh buffer of the source's kind.

        Args:
            spec: the problem; `source` has its input shape.
            source: the input; cast to the spec's dtype where it has another.
            weights: kernel of `spec.kernel_shape`, and bias of `spec.result_channels` values, None where the spec has
                no bias; packed forms are kept under their version.
            residual: of the output's shape, cast to its type; None where the spec adds none.
            packed_limit: bytes that packed weights may take, as of :func:`tvm_conv3d.engine.bounded.plan_within`.

        Raises:
            ValueError: shapes that don't fit the spec, an unusable target, or no plan within the limit of workspace.
            TypeError: the source holds no real numbers.
            RuntimeError: the installed TVM is another version, or can't compile this.
            MemoryError: there is none for the result, the packed weights or the intermediates.
        """
        _check_shapes(spec, source, weights, residual)
        key = self._key(spec, weights, packed_limit, None if source.gpu is None else source.gpu.device)
        if spec.empty:
            return source.restore(_backend_of(self._usable_target(*key[1:3])).without_elements(spec, source))
        # a layer of a millisecond is called in hot loops: what is known of a spec is not asked for again
        call = self._calls.get(key) or self._prepare(key)
        return source.restore(call.run(source, weights, residual, self))

    def weight_gradient(
        self, spec: Conv3DSpec, source: interchange.Source, gradient: interchange.Source
    ) -> tuple[Any, Any | None]:
        """The gradient of the weights, and of the bias where the spec has one, in fresh buffers of the source's kind.

        They are of the source's library where it lies on a GPU, else arrays, which no source has restored.

        Args:
            spec: the problem, a gradient of weights.
            source: the input, of the spec's input shape; cast to its type where it has another.
            gradient: of the spec's output shape, likewise, in the same memory.

        Raises:
            ValueError: shapes that don't fit the spec, sources in different places, an unusable target, or no plan
                within the limit of workspace.
            TypeError: a source holds no real numbers.
            RuntimeError: the installed TVM is another version, or can't compile this.
            MemoryError: there is none for the results or the intermediates.
        """
        for name, given, shape in (("input", source, spec.input_shape), ("gradient", gradient, spec.output_shape)):
            if tuple(given.shape) != shape:
                raise ValueError(f"The {name} must have shape {shape} for {spec.key()}. Received: {given.shape}")
        device = _device_of_both(source, gradient)
        # a GPU's calls have one thread, which queues them
        key = spec, threads.get_num_threads() if device is None else 1, device
        if 0 in spec.output_shape:
            return _backend_of(self._usable_target(*key[1:])).without_products(spec, source)
        return (self._gradients.get(key) or self._prepare_gradient(key)).run(source, gradient)

    def prepared(self, spec: Conv3DSpec, exact: bool) -> Any:
        """The call of another convolution of arrays, for :class:`tvm_conv3d.runtime.backend.Convolutions`.

        Raises:
            ValueError, RuntimeError: as :meth:`convolve`.
        """
        key = (spec, threads.get_num_threads(), None, exact, None)
        return self._calls.get(key) or self._prepare(key)

    def at_hand(
        self, spec: Conv3DSpec, weights: Weights, packed_limit: int | None = None
    ) -> tuple[PreparedCall, Packed[Any]] | None:
        """What :meth:`convolve` calls for arrays, and the weights packed for it, where both are at hand.

        Args:
            spec, weights, packed_limit: as of :meth:`convolve`.
        """
        call = self._calls.get(self._key(spec, weights, packed_limit))
        packed = None if call is None else self.kept(call, weights)
        return None if call is None or packed is None else (call, packed)

    def pack(self, spec: Conv3DSpec, weights: Weights, packed_limit: int | None = None) -> None:
        """Packs weights for calls of arrays to come, where machine code is at hand: else the call does both.

        Args:
            spec: the problem.
            weights, packed_limit: as of :meth:`convolve`.

        Raises:
            ValueError, RuntimeError, MemoryError: as :meth:`convolve`.
        """
        key = self._key(spec, weights, packed_limit)
        call = self._calls.get(key)
        if call is None and not spec.empty:
            target = self._usable_target(*key[1:3])
            if at_hand(self._plan_of(key, target), target):
                call = self._prepare(key)
        if call is not None:
            self.packed(call, weights)

    def kept(self, call: PreparedCall, weights: Weights) -> Packed[Any] | None:
        """Packed weights of this version, where they are at hand."""
        packed = self._forms_of(weights).get(call.layout)
        return packed if packed is not None and packed.version == weights.version else None

    def packed(self, call: PreparedCall, weights: Weights) -> Packed[Any]:
        """Packed weights; specs that differ in size only share one copy."""
        packed = self.kept(call, weights)
        if packed is None:
            with self._lock:
                weights = weights.at_hand()
                packed = self.kept(call, weights)
                if packed is None:
                    packed = call.pack(weights)
                    self._forms_of(weights).put(call.layout, packed)
        return packed

    def _forms_of(self, weights: Weights) -> Recent[Hashable, Packed]:
        return self._packed if weights.packed is None else weights.packed

    def _prepare(self, key: _Key) -> PreparedCall:
        """The call for a key that is not in the table, which has one for the key's next call from now on."""
        spec, count, device, *_ = key
        # compiling, too, must not end in its midst
        with exit_guard.in_flight():
            target = self._usable_target(count, device)
            backend, layer = _backend_of(target), (layer_of(spec), count, device)
            plan = self._sizes.best(key) or self._plan_of(key, target)
            quick = self._quick_plan(layer, key, plan, target)
            call = backend.prepare(quick or plan, target, device or 0)
            self._calls.put((spec, count, device, True, None) if quick else key, call)
            self._sizes.called(layer, key, plan if quick else None)
        return call

    def _prepare_gradient(self, key: _GradientKey) -> PreparedGradient:
        """The call for a key that is not in the table, which has one for the key's next call from now on."""
        spec, count, device = key
        with exit_guard.in_flight():
            target = self._usable_target(count, device)
            plan = self._make_plan(spec, target, exact=False)
            call = _backend_of(target).prepare_gradient(plan, target, device or 0)
            self._gradients.put(key, call)
        return call

    def _quick_plan(self, layer: Hashable, size: Hashable, best: Plan, target: Target) -> Plan | None:
        """What a first call takes instead of `best`; None where it takes that."""
        if not self._sizes.hurries(layer, size, best, target) or at_hand(best, target):
            return None
        with contextlib.suppress(ValueError):
            return self._make_plan(best.spec, target, exact=True)
        # none within the limit of workspace
        return None

    def _key(self, spec: Conv3DSpec, weights: Weights, packed_limit: int | None, device: int | None = None) -> _Key:
        exact = self._exact(weights.structured)
        # a GPU's calls have one thread, which queues them
        count = threads.get_num_threads() if device is None else 1
        return spec, count, device, exact, None if exact else packed_limit

    def _plan_of(self, key: _Key, target: Target) -> Plan:
        spec, _, _, exact, packed_limit = key
        if packed_limit is None:
            return self._make_plan(spec, target, exact)
        return plan_within(spec, target, packed_limit, self._limit)

    def _make_plan(self, spec: Conv3DSpec, target: Target, exact: bool) -> Plan:
        return make_plan(spec, target, exact=exact, workspace_limit=self._limit)

    def _exact(self, structured: bool) -> bool:
        return self._accuracy == "strict" or (structured and self._accuracy == "default")

    def _usable_target(self, count: int, device: int | None) -> Target:
        """The target for an input in the memory of a GPU, or of the CPU: where it lies, unless the user requested one.

        Raises:
            ValueError: the input lies on a GPU and the target is a CPU, there is no code for the GPU, or code for the
                target does not run here.
        """
        if device is None:
            target = self._target(count)
        else:
            target = gpu_target(device) if self._requested in (None, "cuda") else self._target(count)
            if not is_cuda(target):
                raise ValueError(
                    f"The target is a CPU, and the input lies on GPU {device}. Received: target={self._requested!r}. "
                    'Leave the target out, take target="cuda", or copy the input to the CPU.'
                )
        check_runs_here(target, device or 0)
        return target

    def _target(self, count: int) -> Target:
        target = self._targets.get(count)
        if target is None:
            target = requested_target(self._requested, count)
            self._targets.put(count, target)
        return target


_CPU, _GPU = CpuBackend(), GpuBackend()


def _backend_of(target: Target) -> Backend:
    return _GPU if is_cuda(target) else _CPU


def _device_of_both(source: interchange.Source, gradient: interchange.Source) -> int | None:
    """The GPU that holds an input and a gradient; None for the CPU's memory.

    Raises:
        ValueError: they lie in different places, or come from libraries that work on streams of their own.
    """
    if source.gpu is None and gradient.gpu is None:
        return None
    first, second = map(_place_of, (source.gpu, gradient.gpu))
    if first != second:
        raise ValueError(
            "`x` and `gradient` must lie in the same memory: the CPU's, or that of one GPU, of one library. Received: "
            f"x in {first}, gradient in {second}. Copy one of them first."
        )
    return source.gpu.device if source.gpu else None


def _place_of(gpu: GpuTensor | None) -> str:
    return "the CPU's memory" if gpu is None else f"GPU {gpu.device}, of {library_of(gpu.value).name}"


def _check_shapes(
    spec: Conv3DSpec,
    source: interchange.Source,
    weights: Weights,
    residual: interchange.Source | None,
) -> None:
    kernel, bias = weights.shapes
    if tuple(source.shape) != spec.input_shape:
        raise ValueError(f"The input must have shape {spec.input_shape} for {spec.key()}. Received: {source.shape}")
    if kernel != spec.kernel_shape:
        raise ValueError(f"The kernel must have shape {spec.kernel_shape} for {spec.key()}. Received: {kernel}")
    count = spec.result_channels
    if bias != ((count,) if spec.bias else None):
        raise ValueError(f"{spec.key()} takes {count if spec.bias else 'no'} bias values. Received: {bias}")
    added = None if residual is None else tuple(residual.shape)
    if added != (spec.output_shape if spec.residual else None):
        wanted = f"a residual operand of shape {spec.output_shape}" if spec.residual else "no residual operand"
        raise ValueError(f"{spec.key()} takes {wanted}. Received: {added}")
