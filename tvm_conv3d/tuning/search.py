"""The search over all variants of all algorithms that take a spec.

Every variant is tried at the default decisions first, but no more of an algorithm whose first variants are far behind.
Then the better half share some trials, then the better half of those, until two are left. From there each batch goes to
the variant with the least expected seconds: the fastest, unless it has not gained for some batches.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tvm_conv3d.engine.algorithm import Algorithm, Variant
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import traits_of
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.measurement_host import MeasurementHost, Trial
from tvm_conv3d.tuning.space import CostModel, Space

#: A gain below this is noise.
GAIN = 0.01
#: How much slower a variant counts for each batch that brought it no gain.
PATIENCE = 0.05
#: Batches without a single new point after which a variant has no more.
_FRUITLESS = 2
#: A candidate this many times slower than the best is not timed thoroughly.
_CUTOFF = 3.0
#: Share of the trials that the first round, one of each variant, may take.
_FIRST_SHARE = 0.5
#: Variants that are tried at a time in that round.
_FEW = 8
#: Variants of an algorithm after which it is given up where none comes near: within this factor of the fastest.
_ENOUGH, _NEAR = 3, 2.0


@dataclass(frozen=True)
class Options:
    """How long to search.

    Attributes:
        trials: measurements in all, those of an earlier run that was stopped included.
        seconds: after which no further batch begins, see :meth:`Search.run`.
        seed: in 1..2147483647.
    """

    trials: int = 128
    seconds: float = math.inf
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.seed <= 2**31 - 1:
            raise ValueError(f"`seed` must be in 1..2147483647. Received: seed={self.seed}")
        if self.trials < 1 or self.seconds <= 0:
            raise ValueError(
                f"`trials` and `seconds` must be positive. Received: trials={self.trials}, seconds={self.seconds}"
            )


@dataclass
class Contender:
    """One variant in the search."""

    algorithm: Algorithm
    variant: Variant
    decisions: Mapping[str, int]
    space: Space | None = None
    best: float = math.inf
    stale: int = 0
    fruitless: int = 0
    tried: set[str] = field(default_factory=set)
    teach: list[Trial] = field(default_factory=list)

    @property
    def expected_seconds(self) -> float:
        """Seconds that count when batches are given away: the best, plus what patience costs."""
        return self.best * (1 + PATIENCE * self.stale)

    @property
    def open(self) -> bool:
        """Whether it may have further points."""
        space = self.space
        return (
            space is not None
            and self.best < math.inf
            and self.fruitless < _FRUITLESS
            and len(self.tried) < space.points
        )

    def owns(self, trial: Trial) -> bool:
        """Whether it is of this variant."""
        return (trial.plan.algorithm, trial.plan.variant) == (self.algorithm.name, self.variant)

    def credit(self, trial: Trial) -> None:
        """Takes a trial of this variant into account."""
        self.tried.add(trial.plan.describe())
        if trial.seconds is not None:
            self.best = min(self.best, trial.seconds)


class Search:
    """Searches one spec; :meth:`run` may be interrupted, and what was measured stays. It may be called again to go on.

    Args:
        spec: the problem.
        host: where plans are measured, and for which target.
        options: how long.
        journal: where trials are noted; those of an earlier run count as this one's.
        report: called after each trial with all trials so far.

    Attributes:
        trials: so far, in the order of measuring.
        exhausted: there is nothing left to try.
    """

    def __init__(
        self,
        spec: Conv3DSpec,
        host: MeasurementHost,
        options: Options,
        journal: Journal,
        report: Callable[[Sequence[Trial]], None] = lambda trials: None,
    ) -> None:
        self._spec, self._host, self._options, self._journal = spec, host, options, journal
        self._report = report
        self.trials: list[Trial] = list(journal.trials.values())
        self.exhausted = False
        self._batches = self._all_batches()

    def run(self, seconds: float | None = None) -> list[Trial]:
        """Goes on with the search; returns all trials so far.

        Args:
            seconds: after which no further batch begins; None takes those of the options.

        Raises:
            ValueError: no algorithm takes the spec.
        """
        end = time.monotonic() + (self._options.seconds if seconds is None else seconds)
        for _ in self._batches:
            if time.monotonic() >= end:
                return self.trials
        self.exhausted = True
        return self.trials

    def _all_batches(self) -> Iterator[None]:
        """The search, with a stop after each batch."""
        if self._left <= 0:
            return
        pool = contenders_for(self._spec, self._host.target)
        pool = pool[: max(1, min(len(pool), math.ceil(self._options.trials * _FIRST_SHARE)))]
        yield from self._open(pool)
        contenders = [contender for contender in pool if contender.open]
        rounds = max(1, math.ceil(math.log2(max(2, len(contenders)))))
        share = max(1, self._left // (rounds + 1))
        while len(contenders) > 2 and self._left > 0:
            contenders = sorted(contenders, key=lambda contender: contender.best)[: max(2, len(contenders) // 2)]
            for contender in contenders:
                if self._left > 0:
                    self._batch(contender, max(2, share // len(contenders)))
                    yield
            contenders = [contender for contender in contenders if contender.open]
        while self._left > 0 and any(contender.open for contender in pool):
            contender = min((one for one in pool if one.open), key=lambda one: one.expected_seconds)
            self._batch(contender, self._left)
            yield

    @property
    def best(self) -> float:
        """Seconds of the fastest trial."""
        return min((trial.seconds for trial in self.trials if trial.seconds is not None), default=math.inf)

    @property
    def _left(self) -> int:
        return self._options.trials - len(self.trials)

    def _open(self, contenders: Sequence[Contender]) -> Iterator[None]:
        """Tries each variant's first point."""
        model = CostModel(self._options.seed)
        seeds = itertools.count(self._options.seed, 7919)
        waiting = [(contender, seed % (2**31 - 1) + 1) for contender, seed in zip(contenders, seeds, strict=False)]
        for contender in contenders:
            contender.teach = [trial for trial in self.trials if contender.owns(trial)]
        while waiting:
            few = [each for each in waiting if not self._behind(each[0], contenders)][:_FEW]
            waiting = [] if not few else waiting[waiting.index(few[-1]) + 1 :]
            points = [(one, point) for one, seed in few if (point := self._first_point(one, model, seed))]
            for (contender, _), trial in zip(points, self._try([plan for _, plan in points]), strict=True):
                if trial not in contender.teach:
                    contender.teach.append(trial)
                for known in contender.teach:
                    contender.credit(known)
            yield

    def _first_point(self, contender: Contender, model: CostModel, seed: int) -> Plan | None:
        """The variant at the default decisions; None where it can't be scheduled, which costs only itself."""
        try:
            contender.space = Space(self._spec, self._host.target, contender.algorithm, contender.variant, model, seed)
            return contender.space.point(contender.decisions)
        except Exception as error:
            contender.space = None
            plan = Plan(self._spec, contender.algorithm.name, contender.variant, dict(contender.decisions))
            self.trials.append(Trial(plan, None, f"schedule: {str(error).strip().splitlines()[-1:]}"))
            return None

    def _behind(self, contender: Contender, contenders: Sequence[Contender]) -> bool:
        """Whether enough variants of this one's algorithm were tried, and none comes near the fastest."""
        kin = [other.best for other in contenders if other.algorithm is contender.algorithm and other.tried]
        return len(kin) >= _ENOUGH and min(kin) > _NEAR * self.best

    def _batch(self, contender: Contender, most: int) -> None:
        """Gives one batch to a variant."""
        assert contender.space is not None
        if contender.teach:
            contender.space.teach(contender.teach)
            contender.teach = []
        before = contender.best
        plans = contender.space.propose(min(most, self._left))
        if plans:
            trials = self._try(plans)
            for trial in trials:
                contender.credit(trial)
            contender.space.learn(trials)
        contender.stale = 0 if contender.best < before * (1 - GAIN) else contender.stale + 1
        # points of an earlier run are fruit, too: the search passes by them to new ones
        contender.fruitless = 0 if plans else contender.fruitless + 1

    def _try(self, plans: Sequence[Plan]) -> list[Trial]:
        """Trials of the plans: known ones as they are, the others measured, each noted as soon as it is."""
        known = self._journal.trials
        fresh = {plan.describe(): plan for plan in plans if plan.describe() not in known}
        if fresh:
            for trial in self._host.try_plans(list(fresh.values()), self.best * _CUTOFF):
                self._journal.add([trial])
                self.trials.append(trial)
                self._report(self.trials)
        return [known[plan.describe()] for plan in plans]


def contenders_for(spec: Conv3DSpec, target: Target) -> list[Contender]:
    """The variants of every algorithm that takes `spec`: the default's first, then the algorithms in turns.

    Raises:
        ValueError: no algorithm takes the spec.
    """
    traits = traits_of(target)
    first = default_plan(spec, target)
    by_algorithm = []
    for algorithm in algorithms(target.kind).values():
        found = algorithm.default(spec, traits)
        usual = [] if found is None else [found[0]]
        variants = list(dict.fromkeys([*usual, *algorithm.variants(spec, traits)]))
        by_algorithm.append([Contender(algorithm, variant, found[1] if found else {}) for variant in variants])
    by_algorithm.sort(key=lambda contenders: not contenders or contenders[0].algorithm.name != first.algorithm)
    longest = max(map(len, by_algorithm))
    return [contenders[i] for i in range(longest) for contenders in by_algorithm if i < len(contenders)]
