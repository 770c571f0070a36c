"""Compiles and measures plans, in processes of their own."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.engine.build import compile_plan
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.target.cpu import available_cpus, cpu_name
from tvm_conv3d.target.description import Target
from tvm_conv3d.tuning import measure
from tvm_conv3d.tuning.measure import Request
from tvm_conv3d.tuning.workers import Serve, Worker, WorkerError, answer_requests, ask_all

#: Machine code that is kept: the best of a search meet again in its final.
_KEPT_ARTIFACTS = 128


@dataclass(frozen=True)
class Limits:
    """Seconds that a candidate may take: to compile, to be measured, and to be compared with the oracle."""

    build: float = 60.0
    run: float = 20.0
    check: float = 300.0


@dataclass(frozen=True)
class Trial:
    """What was measured of one plan: seconds of a call, or why there are none."""

    plan: Plan
    seconds: float | None
    note: str = ""


class Measurer(Protocol):
    """Where kernels run: a process of this machine, or a remote device."""

    def ask(self, request: Request, timeout: float) -> list[float]:
        """A number for each plan; raises WorkerError, or NoWorkerError where nothing can be measured any more."""

    def close(self) -> None:
        """Frees what is held."""


def serve_builds(connection: Connection) -> None:
    """Compiles (target's text, plan, whether packing is in the same code) to artifacts: the building process."""

    measure.warm_up()

    def handle(request: tuple[str, Plan, bool]) -> Artifact:
        text, plan, with_packing = request
        return compile_plan(plan, Target(text), with_packing)

    answer_requests(connection, handle)


class MeasurementHost:
    """Builders and a measurer for one target; a context manager that ends their processes.

    Building and measuring take turns, as compilers on the same cores would slow down what is measured. What was killed
    from outside is tried once more. All methods raise NoWorkerError where no process can be started.

    Args:
        target: what is compiled for.
        limits: of time.
        builders: number of processes that compile; None takes one for each CPU.
        measurer: where kernels run; None takes a process of this machine, which compiles packing by itself.
        serve_builds: what a building process runs.
        device: the name of the processor that measures, for the records; None takes this machine's.
    """

    def __init__(
        self,
        target: Target,
        limits: Limits | None = None,
        builders: int | None = None,
        measurer: Measurer | None = None,
        serve_builds: Serve = serve_builds,
        device: str | None = None,
    ) -> None:
        self.target = target
        self.device = device or cpu_name()
        self.limits = limits or Limits()
        self._text = target.text
        self._kind = target.kind
        self._builders = [Worker(serve_builds) for _ in range(builders or available_cpus())]
        self._measurer = measurer or Worker(measure.serve)
        self._with_packing = measurer is not None
        self._built: OrderedDict[str, Artifact] = OrderedDict()

    def __enter__(self) -> MeasurementHost:
        # all import TVM at the same time, while the search gets ready
        for worker in (*self._builders, self._measurer):
            if isinstance(worker, Worker):
                worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (*self._builders, self._measurer):
            worker.close()

    def try_plans(self, plans: Sequence[Plan], cutoff_seconds: float = math.inf) -> Iterator[Trial]:
        """Builds all plans, then times each alone; gives each trial as soon as it is measured.

        Args:
            plans: to be tried.
            cutoff_seconds: seconds of a call above which a plan is not timed thoroughly.
        """
        for plan, artifact in zip(plans, self._build(plans), strict=True):
            if isinstance(artifact, WorkerError):
                yield Trial(plan, None, f"build: {artifact}")
                continue
            try:
                seconds = self._ask("time", [(plan, artifact)], self.limits.run, cutoff_seconds)[0]
                trial = Trial(plan, seconds)
            except WorkerError as error:
                trial = Trial(plan, None, f"run: {error}")
            yield trial

    def measure_interleaved(self, plans: Sequence[Plan]) -> list[float]:
        """Seconds of a call of each plan, measured in turns; infinite where one can't be built or run."""
        found = [math.inf] * len(plans)
        built = {i: artifact for i, artifact in enumerate(self._build(plans)) if isinstance(artifact, Artifact)}
        if not built:
            return found
        pairs = [(plans[i], artifact) for i, artifact in built.items()]
        try:
            times = self._ask("interleaved", pairs, self.limits.run * len(pairs))
        except WorkerError:
            # one of them kills the process: each alone, then
            trials = self.try_plans([plan for plan, _ in pairs])
            times = [math.inf if trial.seconds is None else trial.seconds for trial in trials]
        for index, seconds in zip(built, times, strict=True):
            found[index] = seconds
        return found

    def error(self, plan: Plan) -> float:
        """The relative error of a plan's numbers against the oracle; infinite where it can't be built or run."""
        artifact = self._build([plan])[0]
        if isinstance(artifact, WorkerError):
            return math.inf
        try:
            return self._ask("error", [(plan, artifact)], self.limits.check)[0]
        except WorkerError:
            return math.inf

    def _build(self, plans: Sequence[Plan]) -> list[Any]:
        """An artifact for each plan, or a WorkerError; what was built lately is not built again."""
        known = {plan: self._built[plan] for plan in map(_name, plans) if plan in self._built}
        missing = {_name(plan): plan for plan in plans if _name(plan) not in known}
        requests = [(self._text, plan, self._with_packing) for plan in missing.values()]
        found = ask_all(self._builders, requests, self.limits.build)
        killed = [i for i, answer in enumerate(found) if isinstance(answer, WorkerError) and answer.killed]
        again = ask_all(self._builders, [requests[i] for i in killed], self.limits.build)
        for index, answer in zip(killed, again, strict=True):
            found[index] = answer
        for name, artifact in zip(missing, found, strict=True):
            known[name] = artifact
            if isinstance(artifact, Artifact):
                self._built[name] = artifact
        for name in known:
            if name in self._built:
                self._built.move_to_end(name)
        while len(self._built) > _KEPT_ARTIFACTS:
            self._built.popitem(last=False)
        return [known[_name(plan)] for plan in plans]

    def _ask(
        self, action: str, pairs: Sequence[tuple[Plan, Artifact]], timeout: float, cutoff_seconds: float = math.inf
    ) -> list[float]:
        request = Request(action, self._kind, tuple(pairs), cutoff_seconds)
        try:
            return self._measurer.ask(request, timeout)
        except WorkerError as error:
            if not error.killed:
                raise
            return self._measurer.ask(request, timeout)


def _name(plan: Plan) -> str:
    return f"{plan.spec.key()} {plan.describe()}"
