"""Fits the costs by which untuned layers choose a Winograd variant to trials: `python scripts/fit_costs.py`.

Reads the journals that tuning keeps in the cache for this machine and its number of threads. Prints the costs in force
and the fitted ones, in cycles, how far their estimates are from what was measured, and what is lost by taking the
variant with the least estimate instead of the fastest trial. Costs are changed by hand in
`schedules/llvm/costs/winograd_cost.py`, after a look at both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear
from tvm.target import Target

from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.schedules.llvm.costs import winograd_cost
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import folders
from tvm_conv3d.target.cpu import available_cpus, cpu_traits, host_target, thread_count
from tvm_conv3d.target.resolve import target_key

#: Rounds of reweighting, and the error below which a sample's weight grows no more.
ROUNDS, MIN_ERROR = 30, 0.02

#: Factor by which a cost may change at once.
AWAY = 3.0


@dataclass(frozen=True)
class Sample:
    """One trial: the layer, what its variant does, and the cycles that it took."""

    layer: str
    amounts: Mapping[str, float]
    cycles: float

    def estimate(self, costs: Mapping[str, float]) -> float:
        return sum(costs[name] * amount for name, amount in self.amounts.items())


def read(target: Target, ghz: float) -> list[Sample]:
    """The Winograd trials of the target's journals, of each variant the fastest."""
    traits = cpu_traits(target)
    folder = folders.cache_root() / "trials" / target_key(target) / f"threads{thread_count(target)}"
    fastest: dict[tuple[str, str], Sample] = {}
    for path in sorted(folder.glob("*.jsonl")):
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        spec = Conv3DSpec.parse(head["spec"])
        for line in lines:
            if line["algorithm"] == "winograd" and line["seconds"] is not None:
                variant = algorithms("llvm")["winograd"].variant(line["variant"])
                amounts = winograd_cost.amounts(canonicalize(spec), traits, variant)
                sample = Sample(head["spec"], amounts, line["seconds"] * ghz * 1e9)
                key = (head["spec"], repr(variant))
                if key not in fastest or sample.cycles < fastest[key].cycles:
                    fastest[key] = sample
    return list(fastest.values())


def fit(samples: Sequence[Sample]) -> dict[str, float]:
    """Costs of the least sum of relative errors, every layer with the same weight.

    Costs stay within a factor of those in force: amounts grow together, and trials alone hardly tell them apart.
    Errors count as such, not squared, by reweighting: a trial that something disturbed is far off, and says nothing.
    """
    names = list(winograd_cost.COSTS)
    layers = [s.layer for s in samples]
    weights = np.array([layers.count(layer) ** -0.5 for layer in layers])
    rows = np.array([[s.amounts.get(name, 0.0) / s.cycles for name in names] for s in samples])
    in_force = found = np.array([winograd_cost.COSTS[name] for name in names])
    reweighted = weights
    for _ in range(ROUNDS):
        found = lsq_linear(rows * reweighted[:, None], reweighted, (in_force / AWAY, in_force * AWAY)).x
        errors = np.abs(rows @ found - 1)
        reweighted = weights / np.sqrt(np.maximum(errors, MIN_ERROR))
    return dict(zip(names, map(float, found), strict=True))


def tell(title: str, samples: Sequence[Sample], costs: Mapping[str, float]) -> None:
    """Prints the costs, their errors, and the loss of the choice they make."""
    print(f"\n{title}")
    for name, cost in costs.items():
        print(f"  {name:15s} {cost:.4g}")
    errors = [abs(s.estimate(costs) / s.cycles - 1) for s in samples]
    losses = {}
    for layer in {s.layer for s in samples}:
        own = [s for s in samples if s.layer == layer]
        losses[layer] = min(own, key=lambda s: s.estimate(costs)).cycles / min(s.cycles for s in own)
    mean = statistics.geometric_mean(losses.values())
    worst = max(losses, key=lambda layer: losses[layer])
    print(f"  estimates are off by {statistics.median(errors):.0%} in the median")
    print(f"  the choice takes {mean:.3f} times the fastest trial's time, at most {losses[worst]:.2f} ({worst})")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ghz", type=float, default=3.75, help="clock of the cores under this load")
    options.add_argument("--threads", type=int, default=available_cpus(), help="of the journals")
    given = options.parse_args()
    samples = read(host_target(given.threads), given.ghz)
    if not samples:
        raise SystemExit("There are no trials of Winograd variants. Run scripts/tune_llvm.py first.")
    print(f"{len(samples)} trials of {len({s.layer for s in samples})} layers")
    tell("in force", samples, winograd_cost.COSTS)
    tell("fitted", samples, fit(samples))


if __name__ == "__main__":
    main()
