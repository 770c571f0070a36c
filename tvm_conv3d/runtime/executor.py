"""The call: finds a plan, gets its machine code from memory, disk or the compiler, packs weights once, runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, FLAGS, KERNEL, OUT, RESIDUAL, X
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import planner
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import exit_guard, interchange, nonfinite, output_pool, packing, threads
from tvm_conv3d.runtime.compatibility import check_runs_here, gpu_target, requested_target
from tvm_conv3d.runtime.gpu import GpuExecutor, Weights, host_array, without_elements
from tvm_conv3d.runtime.loader import Entry, Loaded, at_hand, get_loaded, get_packing
from tvm_conv3d.runtime.new_sizes import NewSizes, layer_of
from tvm_conv3d.runtime.reserve import reserve
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.dtypes import numpy_dtype
from tvm_conv3d.support.locks import ForkSafeLock
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.resolve import target_key

if TYPE_CHECKING:
    from tvm.target import Target


#: What a call of a convolution has at hand, in this order.
_BOUND = (X, KERNEL, BIAS, RESIDUAL, OUT, FLAGS)


class _Call(NamedTuple):
    """How a compiled function is called: bound once, as a call of a tenth of a millisecond feels each look-up.

    Attributes:
        code: the function.
        ordered: puts what :data:`_BOUND` names into the order of its arguments.
        x, out: shapes of input and output, as the code sees them.
        residual, flags: shapes of its residual operand and its flags, where it has some.
    """

    code: Any
    ordered: Callable[[Sequence[Any]], Sequence[Any]]
    x: tuple[int, ...]
    out: tuple[int, ...]
    residual: tuple[int, ...] | None
    flags: tuple[int, ...] | None

    @classmethod
    def of(cls, entry: Entry) -> _Call:
        """The call of a convolution on a CPU."""
        function = entry.function
        residual, flags = (None if a is None else a.shape for a in map(function.get, (RESIDUAL, FLAGS)))
        return cls(entry.code, function.binder(*_BOUND), function[X].shape, function[OUT].shape, residual, flags)


@dataclass(frozen=True)
class _PreparedCall:
    """All that a call of one spec needs but the weights.

    Attributes:
        target: of the plan's code.
        call: of the same.
        layout: equal for specs that take the same packed weights: algorithm, shapes, and which weights stand where.
        doubts: whether data or weights are not finite, as far as earlier calls know.
    """

    plan: Plan
    target: Target
    loaded: Loaded
    call: _Call
    layout: str
    doubts: nonfinite.Doubts = field(default_factory=nonfinite.Doubts, compare=False)


@dataclass(frozen=True)
class _Packed:
    """Weights in a plan's layout, as the compiled function takes them."""

    version: Hashable
    kernel: Any
    bias: Any
    nbytes: int


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
        self._wish = target
        self._accuracy = accuracy
        self._limit = planner.check_limit(workspace_limit)
        self._most_specs = most_specs or _MAX_SHAPES
        self._clear()

    def _clear(self) -> None:
        self._lock = ForkSafeLock()
        self._ready: Recent[tuple[Conv3DSpec, int, bool], _PreparedCall] = Recent(self._most_specs)
        self._packed: Recent[str, _Packed] = Recent(_MAX_LAYOUTS)
        self._gpu_ready: Recent[tuple[Conv3DSpec, int, str, bool], _PreparedCall] = Recent(self._most_specs)
        self._sizes = NewSizes(self._most_specs)
        self._gpu = GpuExecutor(_MAX_LAYOUTS)
        self._targets: Recent[int, Target] = Recent(_MAX_SHAPES)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_wish", "_accuracy", "_limit", "_most_specs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def plan_for(self, spec: Conv3DSpec, structured: bool = False) -> Plan:
        """How this executor computes `spec`: algorithm, decisions and their origin; compiles nothing.

        Args:
            spec: the problem.
            structured: whether the kernel's values carry exact meaning.

        Raises:
            ValueError: the target is not known, or no algorithm takes the spec within the limit of workspace.
        """
        count = threads.get_num_threads()
        exact = self._exact(structured)
        ready = self._ready.get((spec, count, exact))
        return ready.plan if ready else self._make_plan(spec, self._target(count), exact)

    def __call__(
        self,
        spec: Conv3DSpec,
        source: interchange.Source,
        kernel: np.ndarray,
        bias: np.ndarray | None,
        version: Hashable,
        structured: bool = False,
    ) -> Any:
        """As :meth:`convolve`, with the weights one by one."""
        return self.convolve(spec, source, Weights(kernel, bias, version, structured))

    def convolve(
        self,
        spec: Conv3DSpec,
        source: interchange.Source,
        weights: Weights,
        residual: interchange.Source | None = None,
    ) -> Any:
        """The convolution of `source`, in a fresh buffer of the source's kind.

        Args:
            spec: the problem; `source` has its input shape.
            source: the input; cast to the spec's dtype where it has another.
            weights: kernel of `spec.kernel_shape`, and bias of `spec.result_channels` values, None where the spec has
                no bias; packed forms are kept under their version.
            residual: of the output's shape, cast to its type; None where the spec adds none.

        Raises:
            ValueError: shapes that don't fit the spec, an unusable target, or no plan within the limit of workspace.
            TypeError: the source holds no real numbers.
            RuntimeError: the installed TVM is another version, or can't compile this.
            MemoryError: there is none for the result, the packed weights or the intermediates.
        """
        _check_shapes(spec, source, weights.kernel, weights.bias, residual)
        count = threads.get_num_threads()
        exact = self._exact(weights.structured)
        # a layer of a millisecond is called in hot loops: what is known of a spec is not asked for again
        ready = self._ready.get((spec, count, exact)) if source.gpu is None else None
        if ready is None and is_cuda(target := self._target_for(source, count)):
            return self._on_gpu(spec, source, weights, residual, target, exact)
        x = interchange.prepare(source.numpy(), spec.dtype)
        added = None if residual is None else interchange.prepare(host_array(residual), spec.dtype)
        out = output_pool.empty(spec.output_shape, x.dtype)
        if not spec.empty:
            with exit_guard.in_flight():
                self._fill(out, x, added, ready or self._get_ready(spec, count, exact), weights, count)
        return source.restore(out)

    def _fill(
        self,
        out: np.ndarray,
        x: np.ndarray,
        added: np.ndarray | None,
        ready: _PreparedCall,
        weights: Weights,
        count: int,
    ) -> None:
        failed = not ready.doubts
        if failed and self._run(ready, x, out, weights, added):
            return
        # a tile of Winograd's spreads NaN, infinity and overflow over its cells
        spec = ready.plan.spec
        steps = nonfinite.Steps(
            lambda clean: self._run(ready, clean, out, weights, added),
            lambda signs, of_weights: self._convolve_signs(spec, signs, of_weights, count),
        )
        if not nonfinite.fill(out, x, added, spec, weights, ready.doubts, failed, steps):
            self._run(self._get_ready(spec, count, exact=True), x, out, weights, added)

    def _convolve_signs(self, spec: Conv3DSpec, signs: np.ndarray, weights: Weights, count: int) -> np.ndarray:
        spec = nonfinite.sums_spec(spec)
        ready = self._get_ready(spec, count, exact=False)
        if not nonfinite.sums_are_whole(ready.plan):
            ready = self._get_ready(spec, count, exact=True)
        out = output_pool.empty(spec.output_shape, np.dtype(np.float32))
        self._run(replace(ready, layout=f"signs {ready.layout}"), signs, out, weights)
        return out

    def _on_gpu(
        self,
        spec: Conv3DSpec,
        source: interchange.Source,
        weights: Weights,
        residual: interchange.Source | None,
        target: Target,
        exact: bool,
    ) -> Any:
        number = source.gpu.device if source.gpu else 0
        if spec.empty:
            check_runs_here(target, number)
            if source.gpu:
                return source.restore(without_elements(source.gpu, spec.output_shape, spec.dtype))
            return source.restore(np.empty(spec.output_shape, numpy_dtype(spec.dtype)))
        key = (spec, number, target_key(target), exact)
        ready = self._gpu_ready.get(key)
        if ready is None:
            check_runs_here(target, number)
            plan = self._sizes.best(key) or self._make_plan(spec, target, exact)
            layer = (layer_of(spec), *key[1:])
            quick = self._quick_plan(layer, key, plan, target)
            ready = _ready_of(quick or plan, target)
            if not quick:
                self._gpu_ready.put(key, ready)
            self._sizes.called(layer, key, plan if quick else None)
        if source.gpu:
            return source.restore(self._gpu.on_gpu(ready.plan, ready.loaded, target, source.gpu, weights, residual))
        x = interchange.prepare(source.numpy(), spec.dtype)
        return source.restore(self._gpu.from_host(ready.plan, ready.loaded, target, x, weights, residual))

    def _target_for(self, source: interchange.Source, count: int) -> Target:
        """The target for an input: where it lies, unless the user wished for one.

        Raises:
            ValueError: the input lies on a GPU and the target is a CPU, or there is no code for the GPU.
        """
        if source.gpu is None:
            return self._target(count)
        target = gpu_target(source.gpu.device) if self._wish in (None, "cuda") else self._target(count)
        if not is_cuda(target):
            raise ValueError(
                f"The target is a CPU, and the input lies on GPU {source.gpu.device}. Received: target={self._wish!r}. "
                'Leave the target out, take target="cuda", or copy the input to the CPU.'
            )
        return target

    def _exact(self, structured: bool) -> bool:
        return self._accuracy == "strict" or (structured and self._accuracy == "default")

    def _run(
        self, ready: _PreparedCall, x: np.ndarray, out: np.ndarray, weights: Weights, residual: np.ndarray | None = None
    ) -> bool:
        """Fills `out`; False where the code says that its result can't be trusted."""
        packed, call = self._pack(ready, weights), ready.call
        reserve(ready.loaded, ready.loaded.workspace)
        given, result = interchange.exported(x, call.x), interchange.exported(out, call.out)
        added = None if residual is None else interchange.exported(residual, call.residual)
        if call.flags is None:
            threads.run(call.code, *call.ordered((given, packed.kernel, packed.bias, added, result, None)))
            return True
        flags = np.empty(call.flags, ready.plan.spec.accumulator)
        told = interchange.exported(flags)
        threads.run(call.code, *call.ordered((given, packed.kernel, packed.bias, added, result, told)))
        return bool(np.isfinite(flags).all())

    def _target(self, count: int) -> Target:
        target = self._targets.get(count)
        if target is None:
            target = requested_target(self._wish, count)
            self._targets.put(count, target)
        return target

    def _get_ready(self, spec: Conv3DSpec, count: int, exact: bool) -> _PreparedCall:
        key = (spec, count, exact)
        ready = self._ready.get(key)
        if ready is None:
            target = self._target(count)
            check_runs_here(target)
            plan = self._sizes.best(key) or self._make_plan(spec, target, exact)
            layer = (layer_of(spec), count)
            quick = self._quick_plan(layer, key, plan, target)
            ready = _ready_of(quick or plan, target)
            self._ready.put((spec, count, True) if quick else key, ready)
            self._sizes.called(layer, key, plan if quick else None)
        return ready

    def _quick_plan(self, layer: Hashable, size: Hashable, best: Plan, target: Target) -> Plan | None:
        """What a first call takes instead of `best`; None where it takes that."""
        if not self._sizes.hurries(layer, size, best, target) or at_hand(best, target):
            return None
        with contextlib.suppress(ValueError):
            return self._make_plan(best.spec, target, exact=True)
        # none within the limit of workspace
        return None

    def _make_plan(self, spec: Conv3DSpec, target: Target, exact: bool) -> Plan:
        return make_plan(spec, target, exact=exact, workspace_limit=self._limit)

    def _pack(self, ready: _PreparedCall, weights: Weights) -> _Packed:
        """Packed weights; specs that differ in size only share one copy."""
        key = ready.layout
        table = self._packed if weights.packed is None else weights.packed
        packed = table.get(key)
        if packed is None or packed.version != weights.version:
            with self._lock:
                packed = table.get(key)
                if packed is None or packed.version != weights.version:
                    stored = packing.stored(ready.plan.spec, weights.kernel, weights.bias)
                    pack = get_packing(ready.loaded, ready.plan, ready.target)
                    arrays = packing.on_cpu(pack, stored)
                    function = ready.loaded.main.function
                    views = {name: interchange.exported(a, function[name].shape) for name, a in arrays.items()}
                    packed = _Packed(
                        weights.version, views[KERNEL], views[BIAS], sum(array.nbytes for array in arrays.values())
                    )
                    table.put(key, packed)
        return packed


def _ready_of(plan: Plan, target: Target) -> _PreparedCall:
    loaded = get_loaded(plan, target)
    packed = [argument.shape for argument in loaded.main.function.of("weights", "bias")]
    layout = repr((plan.algorithm, packed, canonicalize(plan.spec).weights_identity))
    return _PreparedCall(plan, target, loaded, _Call.of(loaded.main), layout)


def _check_shapes(
    spec: Conv3DSpec,
    source: interchange.Source,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    residual: interchange.Source | None,
) -> None:
    if tuple(source.shape) != spec.input_shape:
        raise ValueError(f"The input must have shape {spec.input_shape} for {spec.key()}. Received: {source.shape}")
    if kernel.shape != spec.kernel_shape:
        raise ValueError(f"The kernel must have shape {spec.kernel_shape} for {spec.key()}. Received: {kernel.shape}")
    shape = None if bias is None else bias.shape
    count = spec.result_channels
    if shape != ((count,) if spec.bias else None):
        raise ValueError(f"{spec.key()} takes {count if spec.bias else 'no'} bias values. Received: {shape}")
    added = None if residual is None else tuple(residual.shape)
    if added != (spec.output_shape if spec.residual else None):
        wanted = f"a residual operand of shape {spec.output_shape}" if spec.residual else "no residual operand"
        raise ValueError(f"{spec.key()} takes {wanted}. Received: {added}")
