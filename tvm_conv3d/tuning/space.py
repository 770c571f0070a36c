"""One variant's design space under MetaSchedule's evolutionary search."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tvm_conv3d.engine.algorithm import Algorithm, Variant
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules.decisions import Decisions, read_trace
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.description import Target
from tvm_conv3d.tuning.measurement_host import Trial

#: Candidates that the search proposes at a time.
BATCH = 8

#: Small, as the spaces are: four to some hundred points each, of which a replay takes 7 to 35 milliseconds.
_POPULATION, _GENERATIONS, _RETRIES = 24, 2, 3

#: Measurements after which the cost model is asked instead of chance.
_WARM_UP = 24

#: MetaSchedule's price of a candidate that can't be measured, in seconds.
_FAILED = 1e10

_INTRINSICS = "tvm.s_tir.tensor_intrin"


class CostModel:
    """MetaSchedule's XGBoost model, shared by the variants of one spec, as what it learns of one serves the others."""

    def __init__(self, seed: int) -> None:
        from tvm.s_tir import meta_schedule

        # one thread: some hundred samples are no work for more, which only wait for each other
        config = meta_schedule.cost_model.xgb_model.XGBConfig(seed=seed, nthread=1)
        # verbose_eval counts boosting rounds between log lines, none of which is wanted
        self.model = meta_schedule.cost_model.XGBModel(
            config=config, num_warmup_samples=_WARM_UP, verbose_eval=10**6, early_stopping_rounds=20
        )


class Space:
    """Proposes decisions of one variant and learns from what they cost.

    Args:
        spec: the problem.
        target: what is compiled for.
        algorithm: whose design space it is.
        variant: of that algorithm.
        model: the cost model.
        seed: in 1..2147483647; the same seed and the same costs give the same proposals.

    Attributes:
        points: at most that many there are, known after the first.

    Raises:
        Exception: whatever TVM raises where the variant can't be declared or scheduled.
    """

    def __init__(
        self, spec: Conv3DSpec, target: Target, algorithm: Algorithm, variant: Variant, model: CostModel, seed: int
    ) -> None:
        self._spec, self._algorithm, self._variant, self._target = spec, algorithm, variant, target
        self._module = algorithm.declare(spec, variant).module()
        self._names: list[str] = []
        self.points = 1
        self._model, self._seed = model.model, seed
        self._context: Any = None
        self._proposed: list[Any] = []

    def point(self, decisions: Mapping[str, int]) -> Plan:
        """The plan nearest to `decisions`: tiles that do not divide become those that do."""
        return self._plan(self._scheduled(decisions)[1])

    def propose(self, most: int) -> list[Plan]:
        """At most `most` points, and no more than :data:`BATCH`; none where the search finds no more."""
        self._start()
        found = self._context.generate_measure_candidates()
        self._proposed = list(found or ())[:most]
        return [self._plan(read_trace(candidate.sch.trace, self._names)) for candidate in self._proposed]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Takes the measurements of what :meth:`propose` gave, in that order."""
        self._context.notify_runner_results(self._proposed, [_result(trial) for trial in trials])
        self._learn(self._proposed, trials)
        self._proposed = []

    def teach(self, trials: Sequence[Trial]) -> None:
        """Takes measurements of other points, such as the defaults or those of an earlier run."""
        from tvm.s_tir.meta_schedule.arg_info import ArgInfo
        from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

        self._start()
        infos = ArgInfo.from_entry_func(self._module, remove_preproc=False)
        schedules = [self._scheduled(trial.plan.decisions)[0] for trial in trials]
        self._learn([MeasureCandidate(schedule, infos) for schedule in schedules], trials)

    def _learn(self, candidates: Sequence[Any], trials: Sequence[Trial]) -> None:
        from tvm.s_tir.meta_schedule.database import TuningRecord

        results = [_result(trial) for trial in trials]
        for candidate, result in zip(candidates, results, strict=True):
            record = TuningRecord(
                candidate.sch.trace, self._workload, result.run_secs, self._target.as_tvm(), candidate.args_info
            )
            self._database.commit_tuning_record(record)
        self._model.update(self._context, candidates, results)

    def _start(self) -> None:
        """Makes the search; late, as most variants are never searched."""
        if self._context is not None:
            return
        from tvm.s_tir import meta_schedule

        # before the first 24 measurements the model's scores are drawn from NumPy's global generator
        np.random.seed(self._seed)
        strategy = meta_schedule.search_strategy.EvolutionarySearch(
            population_size=min(_POPULATION, 2 * self.points),
            init_min_unmeasured=2,
            max_fail_count=3,
            genetic_num_iters=_GENERATIONS,
            genetic_max_fail_count=_RETRIES,
        )
        generator = meta_schedule.space_generator.ScheduleFn(
            self._sample, [], [], {meta_schedule.mutator.MutateTileSize(): 1.0}
        )
        with _without_tensor_intrinsics():
            # with one thread the order of draws is always the same
            self._context = meta_schedule.TuneContext(
                self._module,
                target=self._target.as_tvm(),
                space_generator=generator,
                search_strategy=strategy,
                rand_state=self._seed,
                num_threads=1,
            )
        self._database = meta_schedule.database.MemoryDatabase()
        self._workload = self._database.commit_workload(self._module)
        self._context.pre_tuning(10**6, BATCH, None, self._database, self._model)

    def _sample(self, schedule: Any) -> None:
        decisions = Decisions(schedule, None)
        self._algorithm.apply(schedule, self._spec, self._variant, decisions)
        self._names = decisions.names

    def _scheduled(self, fixed: Mapping[str, int]) -> tuple[Any, dict[str, int]]:
        from tvm.s_tir import Schedule

        schedule = Schedule(self._module)
        decisions = Decisions(schedule, fixed)
        self._algorithm.apply(schedule, self._spec, self._variant, decisions)
        self.points = decisions.points
        return schedule, decisions.taken()

    def _plan(self, decisions: Mapping[str, int]) -> Plan:
        return Plan(self._spec, self._algorithm.name, self._variant, decisions, origin="tuning")


def _result(trial: Trial) -> Any:
    from tvm.s_tir.meta_schedule.runner import RunnerResult

    return RunnerResult([_FAILED if trial.seconds is None else trial.seconds], None)


@contextmanager
def _without_tensor_intrinsics() -> Iterator[None]:
    """Keeps TuneContext from importing TVM's tensor intrinsics: that takes 25 s, and these spaces use none."""
    if _INTRINSICS in sys.modules:
        yield
        return
    sys.modules[_INTRINSICS] = types.ModuleType(_INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[_INTRINSICS]
