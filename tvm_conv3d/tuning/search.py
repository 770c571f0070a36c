"""The search over all variants of all algorithms that take a spec.

Every variant is tried at the default decisions first. Then the better half share some trials, then the better half of
those, until two are left. From there each batch goes to the variant with the best prospect: the fastest, unless it has
not gained for some batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvm_conv3d.algorithms import Algorithm, Variant, algorithms
from tvm_conv3d.plan import Plan, default_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.targets import traits_of
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.lab import Lab, Trial
from tvm_conv3d.tuning.space import CostModel, Space

if TYPE_CHECKING:
    from tvm.target import Target

#: A gain below this is noise.
GAIN = 0.01
#: How much slower a variant counts for each batch that brought it no gain.
PATIENCE = 0.05
#: Batches without a single new point after which a variant has no more.
_FRUITLESS = 2
#: A candidate this many times slower than the best is not timed thoroughly.
_HOPELESS = 3.0
#: Share of the trials that the first round, one of each variant, may take.
_FIRST_SHARE = 0.5


@dataclass(frozen=True)
class Options:
    """How long to search.

    Attributes:
        trials: measurements in all, those of an earlier run that was stopped included.
        seconds: after which no further batch begins.
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
class Arm:
    """One variant in the search."""

    algorithm: Algorithm
    variant: Variant
    decisions: Mapping[str, int]
    space: Space | None = None
    best: float = math.inf
    stale: int = 0
    fruitless: int = 0
    teach: list[Trial] = field(default_factory=list)

    @property
    def prospect(self) -> float:
        """Seconds that count when batches are given away: the best, plus what patience costs."""
        return self.best * (1 + PATIENCE * self.stale)

    @property
    def open(self) -> bool:
        """Whether it may have further points."""
        return self.space is not None and self.best < math.inf and self.fruitless < _FRUITLESS

    def credit(self, trial: Trial) -> None:
        """Takes a trial of this variant into account."""
        if trial.seconds is not None:
            self.best = min(self.best, trial.seconds)


class Search:
    """Searches one spec; :meth:`run` may be interrupted, and what was measured stays.

    Args:
        spec: the problem.
        lab: where plans are measured, and for which target.
        options: how long.
        journal: where trials are noted; those of an earlier run count as this one's.
        report: called after each batch with all trials so far and the search's seconds.
    """

    def __init__(
        self,
        spec: Conv3DSpec,
        lab: Lab,
        options: Options,
        journal: Journal,
        report: Callable[[Sequence[Trial]], None] = lambda trials: None,
    ) -> None:
        self._spec, self._lab, self._options, self._journal = spec, lab, options, journal
        self._report = report
        self._began = time.monotonic()
        self.trials: list[Trial] = list(journal.trials.values())

    def run(self) -> list[Trial]:
        """All trials, in the order of measuring.

        Raises:
            ValueError: no algorithm takes the spec.
        """
        if self._left <= 0:
            return self.trials
        arms = contenders(self._spec, self._lab.target)
        first = max(1, min(len(arms), math.ceil(self._options.trials * _FIRST_SHARE)))
        arms = arms[:first]
        self._open(arms)
        arms = [arm for arm in arms if arm.open]
        rounds = max(1, math.ceil(math.log2(max(2, len(arms)))))
        share = max(1, self._left // (rounds + 1))
        while len(arms) > 2 and self._more:
            arms = sorted(arms, key=lambda arm: arm.best)[: max(2, len(arms) // 2)]
            for arm in arms:
                if self._more:
                    self._batch(arm, max(2, share // len(arms)))
            arms = [arm for arm in arms if arm.open]
        while self._more and any(arm.open for arm in arms):
            arm = min((arm for arm in arms if arm.open), key=lambda arm: arm.prospect)
            self._batch(arm, self._left)
        return self.trials

    @property
    def best(self) -> float:
        """Seconds of the fastest trial."""
        return min((trial.seconds for trial in self.trials if trial.seconds is not None), default=math.inf)

    @property
    def _left(self) -> int:
        return self._options.trials - len(self.trials)

    @property
    def _more(self) -> bool:
        return self._left > 0 and time.monotonic() - self._began < self._options.seconds

    def _open(self, arms: Sequence[Arm]) -> None:
        """Tries each variant's first point."""
        model = CostModel(self._options.seed)
        points: list[tuple[Arm, Plan]] = []
        for number, arm in enumerate(arms):
            seed = (self._options.seed + 7919 * number) % (2**31 - 1) + 1
            try:
                arm.space = Space(self._spec, self._lab.target, arm.algorithm, arm.variant, model, seed)
                points.append((arm, arm.space.point(arm.decisions)))
            except Exception as error:
                # a variant that can't be scheduled costs only itself
                arm.space = None
                plan = Plan(self._spec, arm.algorithm.name, arm.variant, dict(arm.decisions))
                self.trials.append(Trial(plan, None, f"schedule: {str(error).strip().splitlines()[-1:]}"))
        for start in range(0, len(points), 8):
            few = points[start : start + 8]
            # the default is tried however little time there is
            if start and not self._more:
                break
            for (arm, _), trial in zip(few, self._try([plan for _, plan in few]), strict=True):
                arm.credit(trial)
        for arm, _ in points:
            earlier = [
                t for t in self.trials if (t.plan.algorithm, t.plan.variant) == (arm.algorithm.name, arm.variant)
            ]
            for trial in earlier:
                arm.credit(trial)
            arm.teach = earlier

    def _batch(self, arm: Arm, most: int) -> None:
        """Gives one batch to a variant."""
        assert arm.space is not None
        if arm.teach:
            arm.space.teach(arm.teach)
            arm.teach = []
        before, count = arm.best, len(self.trials)
        plans = arm.space.propose(min(most, self._left))
        if plans:
            trials = self._try(plans)
            for trial in trials:
                arm.credit(trial)
            arm.space.learn(trials)
        arm.stale = 0 if arm.best < before * (1 - GAIN) else arm.stale + 1
        arm.fruitless = 0 if len(self.trials) > count else arm.fruitless + 1

    def _try(self, plans: Sequence[Plan]) -> list[Trial]:
        """Trials of the plans: known ones as they are, the others from the lab."""
        known = self._journal.trials
        fresh = {plan.describe(): plan for plan in plans if plan.describe() not in known}
        if fresh:
            measured = self._lab.try_plans(list(fresh.values()), self.best * _HOPELESS)
            self._journal.add(measured)
            self.trials += measured
            self._report(self.trials)
        return [known[plan.describe()] for plan in plans]


def contenders(spec: Conv3DSpec, target: Target) -> list[Arm]:
    """The variants of every algorithm that takes `spec`: the default's first, then the algorithms in turns.

    Raises:
        ValueError: no algorithm takes the spec.
    """
    traits = traits_of(target)
    first = default_plan(spec, target)
    by_algorithm = []
    for algorithm in algorithms(str(target.kind.name)).values():
        found = algorithm.default(spec, traits)
        usual = [] if found is None else [found[0]]
        variants = list(dict.fromkeys([*usual, *algorithm.variants(spec, traits)]))
        by_algorithm.append([Arm(algorithm, variant, found[1] if found else {}) for variant in variants])
    by_algorithm.sort(key=lambda arms: not arms or arms[0].algorithm.name != first.algorithm)
    longest = max(map(len, by_algorithm))
    return [arms[i] for i in range(longest) for arms in by_algorithm if i < len(arms)]
