"""What runs in the measured process: one spec's data, kernels loaded, timed, and compared with the oracle."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tvm_conv3d.compute.shared.argument import BIAS, BIAS_GRADIENT, GRADIENT, KERNEL, OUT, RESIDUAL, X
from tvm_conv3d.engine.artifact import MAIN, Artifact
from tvm_conv3d.engine.cuda.image import Image
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.reference.problem import choose_positions, choose_taps, values_at
from tvm_conv3d.runtime import interchange, loader, output_pool, packing, threads
from tvm_conv3d.runtime.loader import Loaded
from tvm_conv3d.spec import WEIGHT_GRADIENT, Conv3DSpec
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.tuning.gpu_kernel import GpuKernel
from tvm_conv3d.tuning.workers import answer_requests

#: Seconds of one call, the mean of as many as it is told.
Clock = Callable[[int], float]

#: Seconds of one timed repeat, and repeats, of a kernel that is not slower than that.
REPEAT_SECONDS = 0.01
REPEATS = 5

#: Seconds of a kernel from which on three repeats are enough.
SLOW_SECONDS = 0.03

#: Seconds of an interleaved measurement, and its rounds.
INTERLEAVED_SECONDS, MIN_ROUNDS, MAX_ROUNDS = 3.0, 5, 15

#: Packed weights that are kept: the variants of a batch take turns.
_KEPT_WEIGHTS = 4


@dataclass(frozen=True)
class Request:
    """What is asked of the measured process.

    Attributes:
        action: "time" (least seconds of each plan alone), "interleaved" (median seconds of all in turns) or "error"
            (against the oracle).
        kind: of the target.
        plans: of one spec, each with its machine code.
        cutoff_seconds: a plan whose first calls take longer is not timed any further.
    """

    action: str
    kind: str
    plans: tuple[tuple[Plan, Artifact], ...]
    cutoff_seconds: float = math.inf


@dataclass
class Kernel:
    """Machine code and what it is called with.

    Attributes:
        function: the code.
        views: its arguments, in order.
        flags: those of them by which it tells whether its result can be trusted: finite, if it can.
    """

    function: Callable[..., None]
    views: Sequence[Any]
    flags: Sequence[np.ndarray]

    def __call__(self) -> None:
        self.function(*self.views)

    @property
    def trusted(self) -> bool:
        """Whether the last call's result can be."""
        return all(np.isfinite(flags).all() for flags in self.flags)

    def fetch(self, results: Mapping[str, np.ndarray]) -> None:
        """Brings the last call's results into arrays, which it fills itself on a CPU."""

    def seconds(self, count: int) -> float:
        """Seconds of one call, the mean of `count`."""
        return seconds_of(self, count)


@dataclass
class Bench:
    """The data of one spec and what computes on it.

    Attributes:
        spec: the problem.
        operands: what kernels read, by name; weights as they were.
        results: what they fill, by name.
        packed: weights in the layouts of plans.
    """

    spec: Conv3DSpec
    operands: Mapping[str, np.ndarray]
    results: Mapping[str, np.ndarray]
    packed: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Conv3DSpec) -> Bench:
        """Random data, the same for the same spec."""
        rng = np.random.default_rng(0)
        dtype = np.float64 if spec.dtype == "float64" else np.float32
        x = interchange.prepare(rng.standard_normal(spec.input_shape, dtype), spec.dtype)
        operands = {X: x}
        if spec.direction == WEIGHT_GRADIENT:
            operands[GRADIENT] = rng.standard_normal(spec.output_shape, dtype).astype(x.dtype)
            results = {OUT: output_pool.empty(spec.kernel_shape, x.dtype)}
            if spec.bias:
                results[BIAS_GRADIENT] = np.empty(spec.filters, x.dtype)
            return cls(spec, operands, results)
        scale = 1 / math.sqrt(math.prod(spec.kernel_shape[:4]))
        operands[KERNEL] = (scale * rng.standard_normal(spec.kernel_shape)).astype(x.dtype)
        if spec.bias:
            operands[BIAS] = rng.standard_normal(spec.result_channels).astype(x.dtype)
        if spec.residual:
            operands[RESIDUAL] = rng.standard_normal(spec.output_shape, dtype).astype(x.dtype)
        return cls(spec, operands, {OUT: output_pool.empty(spec.output_shape, x.dtype)})

    def kernel_of(self, plan: Plan, artifact: Artifact) -> Kernel | GpuKernel:
        """The plan's kernel on this data, into :attr:`results`; weights are packed before."""
        loaded = loader.link(artifact)
        entry, arrays = loaded.main, self.arguments(artifact)
        if Image.recognizes(artifact.object_code):
            return GpuKernel.of(loaded, arrays, self.weights)
        arrays.update(self._packed_weights(plan, loaded))
        views = {a.name: interchange.exported(arrays[a.name], a.shape) for a in entry.function.arguments}
        flags = [arrays[a.name] for a in entry.function.of("flags")]
        return Kernel(entry.code, entry.function.ordered(views), flags)

    def arguments(self, artifact: Artifact) -> dict[str, np.ndarray]:
        """What the plan's kernel takes besides weights, by name."""
        flags = {a.name: np.zeros(a.shape, a.dtype) for a in artifact.functions[MAIN].of("flags")}
        read = {name: array for name, array in self.operands.items() if name not in (KERNEL, BIAS)}
        return {**read, **self.results, **flags}

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What the plan's packing takes, by name; nothing where the problem has no weights."""
        if KERNEL not in self.operands:
            return {}
        return packing.stored(self.spec, self.operands[KERNEL], self.operands.get(BIAS))

    def error(self, kernel: Kernel | GpuKernel) -> float:
        """The relative error (2-norm) of a kernel's results; infinite where a value is not finite."""
        for result in self.results.values():
            result.fill(np.nan)
        threads.run(kernel)
        kernel.fetch(self.results)
        return self.error_of(self.results) if kernel.trusted else math.inf

    def error_of(self, results: Mapping[str, np.ndarray]) -> float:
        """The same of arrays like :attr:`results`."""
        pairs = self._weight_gradients(results) if self.spec.direction == WEIGHT_GRADIENT else self._outputs(results)
        if not all(np.isfinite(values.astype(np.float64)).all() for values, _ in pairs):
            return math.inf
        return max(oracle.relative_error(values, expected) for values, expected in pairs)

    def _outputs(self, results: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Some values of an output, and what is right."""
        spec, operands = self.spec, self.operands
        positions = choose_positions(spec, np.random.default_rng(0))
        sums = oracle.convolve_at(spec, operands[X], operands[KERNEL], operands.get(BIAS), positions)
        residual = operands.get(RESIDUAL)
        added = None if residual is None else values_at(residual, positions, spec.data_format)
        return [(values_at(results[OUT], positions, spec.data_format), oracle.finish(spec, sums, added))]

    def _weight_gradients(self, results: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Some values of gradients of weights and bias, and what is right."""
        spec, gradient = self.spec, self.operands[GRADIENT]
        taps = choose_taps(spec, np.random.default_rng(0))
        pairs = [(results[OUT][tuple(taps.T)], oracle.weight_gradient_at(spec, self.operands[X], gradient, taps))]
        return [*pairs, (results[BIAS_GRADIENT], oracle.bias_gradient(spec, gradient))] if spec.bias else pairs

    def _packed_weights(self, plan: Plan, loaded: Loaded) -> Mapping[str, np.ndarray]:
        """Kernel and bias in the plan's layout, by name; nothing where it takes no weights."""
        taken = loaded.main.function.of("weights", "bias")
        if not taken:
            return {}
        key = f"{plan.algorithm} {plan.variant} {taken}"
        if key not in self.packed:
            while len(self.packed) >= _KEPT_WEIGHTS:
                self.packed.pop(next(iter(self.packed)))
            pack = loader.get_packing(loaded, plan, host_target(1))
            self.packed[key] = packing.on_cpu(pack, self.weights)
        return self.packed[key]


def serve(connection: Connection) -> None:
    """Answers :class:`Request`: the measured process."""
    warm_up()
    benches: dict[str, Bench] = {}

    def handle(request: Request) -> Any:
        spec = request.plans[0][0].spec
        if spec.key() not in benches:
            benches.clear()
            benches[spec.key()] = Bench.of(spec)
        return perform(request, benches[spec.key()])

    answer_requests(connection, handle)


def warm_up() -> None:
    """Imports what the first request would otherwise wait for."""
    import tvm_ffi_orcjit

    tvm_ffi_orcjit.default_session()


def perform(request: Request, bench: Bench) -> list[float]:
    """A number for each plan: seconds of a call, or the relative error.

    Raises:
        ValueError: the action is unknown.
    """
    calls = [bench.kernel_of(plan, artifact) for plan, artifact in request.plans]
    if request.action == "error":
        return [bench.error(call) for call in calls]
    clocks = [call.seconds for call in calls]
    if request.action == "time":
        return [_timed(clock, request.cutoff_seconds) for clock in clocks]
    if request.action == "interleaved":
        return measure_interleaved(clocks)
    raise ValueError(f"`action` must be time, interleaved or error. Received: {request.action!r}")


def measure_interleaved(clocks: Sequence[Clock]) -> list[float]:
    """Median seconds of each call, measured in turns: what disturbs the machine disturbs all alike."""
    first = [clock(1) for clock in clocks]
    counts = [max(1, math.ceil(REPEAT_SECONDS / max(seconds, 1e-9))) for seconds in first]
    a_round = sum(count * seconds for count, seconds in zip(counts, first, strict=True))
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, round(INTERLEAVED_SECONDS / max(a_round, 1e-9))))
    turns = [[clock(count) for clock, count in zip(clocks, counts, strict=True)] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def _timed(clock: Clock, cutoff_seconds: float) -> float:
    # the first call also fetches code and pages
    once = min(clock(1) for _ in range(2))
    if once > cutoff_seconds:
        return once
    count = max(1, math.ceil(REPEAT_SECONDS / max(once, 1e-9)))
    repeats = REPEATS if once < SLOW_SECONDS else 3
    # what disturbs the machine only ever makes a call slower
    return min(clock(count) for _ in range(repeats))


def seconds_of(call: Callable[[], None], count: int) -> float:
    """Seconds of one call on this machine's threads, the mean of `count`."""
    spent = [0.0]

    def loop() -> None:
        began = time.perf_counter()
        for _ in range(count):
            call()
        spent[0] = time.perf_counter() - began

    threads.run(loop)
    return spent[0] / count
