"""Fits the costs by which untuned layers choose among algorithms: `python scripts/fit_costs.py measure`, then `fit`.

`measure` times each algorithm's default plan, in turns, on layers of a file and on layers drawn at random, and keeps
the samples in the cache. `fit` reads them and the journals that tuning keeps for this machine and its number of
threads. It prints the costs in force and the fitted ones, in cycles, how far their estimates are from what was
measured, and what is lost by taking the plan with the least estimate instead of the fastest; `--write` makes the fitted
ones this microarchitecture's table in `schedules/llvm/costs/tables`, in which costs may still be changed by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import lsq_linear

from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.reference.random_layers import draw
from tvm_conv3d.schedules.llvm.costs import table
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec
from tvm_conv3d.target.cpu import available_cpus, cpu_name, cpu_traits, host_target, thread_count
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning.journal import folder_of

if TYPE_CHECKING:
    from tvm_conv3d.tuning.measurement_host import MeasurementHost

#: Algorithm -> amount -> cycles.
Costs = Mapping[str, Mapping[str, float]]

#: Rounds of reweighting, and the error below which a sample's weight grows no more.
ROUNDS, MIN_ERROR = 30, 0.02

#: Factor by which a cost may change at once.
AWAY = 3.0

#: Costs by which an algorithm chooses among its own variants. Samples with one plan an algorithm say nothing about
#: their ratios, which stay as they are unless there are journals of tuning.
OWN_CHOICE = {
    "winograd": (
        *("product_1", "product_2", "product_3", "product_4", "transform", "copy", "piece", "own_l2"),
        *("own_l3", "own_memory", "weights_l3", "waiting", "task", "transpose", "row"),
    ),
    "winograd_rows": ("tap", "product", "position", "vector", "row"),
    "planes": ("step",),
    "depthwise": ("step", "step_tail", "copy"),
    "grouped": ("product", "shuffled", "repeated", "copy", "copy_again", "transpose"),
    "direct": ("product_1", "product_2", "product_3", "product_4", "product_shared", "conflict", "interleave"),
}

#: Weight of the costs in force, each as if so large a share of the samples' weight said them.
PRIOR = 0.003


@dataclass(frozen=True)
class Sample:
    """One trial: the layer, the plan's algorithm, what it does, and the cycles that it took."""

    layer: str
    algorithm: str
    amounts: Mapping[str, float]
    cycles: float

    def estimate(self, costs: Costs) -> float:
        return table.total(costs[self.algorithm], self.amounts)


def measure(target: Target, specs: Sequence[Conv3DSpec], others: bool = False) -> None:
    """Times the default plans of all algorithms for each spec, in turns, and keeps them in the journals' format.

    Args:
        target: what is compiled for.
        specs: the problems; those that were measured before are left out.
        others: those plans, too, which an algorithm has beside its default to pack fewer weights.
    """
    from tvm_conv3d.tuning.measurement_host import MeasurementHost

    folder = folder_of(target, "costs")
    folder.mkdir(parents=True, exist_ok=True)
    with MeasurementHost(target) as host:
        for number, spec in enumerate(specs):
            path = folder / f"{sha256(spec.key().encode()).hexdigest()[:24]}.jsonl"
            if path.exists():
                continue
            lines = list(_measured(host, spec, others))
            path.write_text("\n".join([json.dumps({"spec": spec.key()}), *lines]) + "\n", encoding="utf-8")
            print(f"{number + 1}/{len(specs)} {spec.key()}: {len(lines)} plans", flush=True)


def _measured(host: MeasurementHost, spec: Conv3DSpec, others: bool) -> Iterator[str]:
    traits = cpu_traits(host.target)
    plans = []
    for algorithm in algorithms("llvm").values():
        beside = algorithm.smaller(spec, traits) if others else ()
        found = [default for default in (algorithm.default(spec, traits), *beside) if default is not None]
        plans += [Plan(spec, algorithm.name, *pair) for pair in found]
    for plan, seconds in zip(plans, host.measure_interleaved(plans), strict=True):
        if math.isfinite(seconds):
            yield json.dumps({**json.loads(plan.describe()), "seconds": seconds})


def read(target: Target, ghz: float) -> list[Sample]:
    """The samples and journals of the target, of each plan the fastest."""
    traits = cpu_traits(target)
    fastest: dict[tuple[str, str], Sample] = {}
    for path in sorted(p for kind in ("costs", "trials") for p in folder_of(target, kind).glob("*.jsonl")):
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        spec = Conv3DSpec.parse(head["spec"])
        for line in lines:
            if line["seconds"] is None:
                continue
            algorithm = algorithms("llvm")[line["algorithm"]]
            variant = algorithm.variant(line["variant"])
            amounts = algorithm.costs.amounts(canonicalize(spec), traits, variant, line["decisions"])
            sample = Sample(head["spec"], algorithm.name, amounts, line["seconds"] * ghz * 1e9)
            key = (head["spec"], f"{line['algorithm']} {variant} {line['decisions']}")
            if key not in fastest or sample.cycles < fastest[key].cycles:
                fastest[key] = sample
    return list(fastest.values())


def fit(samples: Sequence[Sample], in_force: Costs, own_choice: Mapping[str, Collection[str]] = OWN_CHOICE) -> Costs:
    """Costs of the least sum of relative errors for each algorithm; those of algorithms without samples stay.

    Args:
        samples: what was measured.
        in_force: the present costs.
        own_choice: of each algorithm the costs whose ratios stay.
    """
    best: dict[str, float] = {}
    for sample in samples:
        best[sample.layer] = min(sample.cycles, best.get(sample.layer, math.inf))
    found = {}
    for name, costs in in_force.items():
        own = [sample for sample in samples if sample.algorithm == name]
        nearness = np.array([best[sample.layer] / sample.cycles for sample in own])
        found[name] = _fitted(own, nearness, costs, own_choice.get(name, ())) if len(own) > len(costs) else costs
    return found


def _fitted(
    samples: Sequence[Sample], nearness: np.ndarray, in_force: Mapping[str, float], together: Collection[str]
) -> Mapping[str, float]:
    """Costs of one algorithm, every layer with the same weight, times how near a plan is to the layer's best.

    Costs stay within a factor of those in force: amounts grow together, and trials alone hardly tell them apart. What
    the samples do not tell stays as it is. Errors count as such, not squared, by reweighting: a trial that something
    disturbed is far off, and says nothing.

    Args:
        samples: of the algorithm.
        nearness: of each sample, at most 1.
        in_force: the present costs.
        together: those that change by one factor.
    """
    columns = [tuple(together)] if together else []
    columns += [(name,) for name in in_force if name not in together]
    layers = [s.layer for s in samples]
    weights = nearness * np.array([layers.count(layer) ** -0.5 for layer in layers])
    rows = np.array(
        [[sum(in_force[n] * s.amounts.get(n, 0.0) for n in names) / s.cycles for names in columns] for s in samples]
    )
    prior = math.sqrt(PRIOR * float(weights @ weights)) * np.eye(len(columns))
    reweighted, found = weights, np.ones(len(columns))
    for _ in range(ROUNDS):
        left = np.vstack([rows * reweighted[:, None], prior])
        found = lsq_linear(left, np.concatenate([reweighted, prior.sum(axis=0)]), (1 / AWAY, AWAY)).x
        errors = np.abs(rows @ found - 1)
        reweighted = weights / np.sqrt(np.maximum(errors, MIN_ERROR))
    factors = {name: float(factor) for names, factor in zip(columns, found, strict=True) for name in names}
    return {name: cost * factors[name] for name, cost in in_force.items()}


def tell(title: str, samples: Sequence[Sample], costs: Costs) -> None:
    """Prints the costs, their errors, and the losses of the choices they make."""
    print(f"\n{title}")
    for name, of_one in costs.items():
        own = [s for s in samples if s.algorithm == name]
        errors = [abs(s.estimate(costs) / s.cycles - 1) for s in own]
        off = f"estimates are off by {statistics.median(errors):.0%} in the median" if own else "no samples"
        print(f"  {name}: " + ", ".join(f"{amount} {cost:.3g}" for amount, cost in of_one.items()))
        print(f"    {len(own)} trials; {off}; {_loss(own, costs)}")
    print(f"  among all algorithms, {_loss(samples, costs)}")


def _loss(samples: Sequence[Sample], costs: Costs) -> str:
    """What is lost by taking the least estimate of each layer."""
    losses = {}
    by_layer = defaultdict(list)
    for sample in samples:
        by_layer[sample.layer].append(sample)
    for layer, own in by_layer.items():
        losses[layer] = min(own, key=lambda s: s.estimate(costs)).cycles / min(s.cycles for s in own)
    if not losses:
        return "nothing to choose"
    worst = max(losses, key=lambda layer: losses[layer])
    mean = statistics.geometric_mean(losses.values())
    return f"the choice takes {mean:.3f} times the fastest trial's time, at most {losses[worst]:.2f} ({worst})"


def _rounded(costs: Costs) -> Costs:
    return {name: {a: float(f"{cost:.3g}") for a, cost in of_one.items()} for name, of_one in costs.items()}


def _specs(options: argparse.Namespace) -> list[Conv3DSpec]:
    layers = read_csv(options.layers) if options.layers else []
    layers += [layer for seed in options.seeds for layer in draw(options.random, seed)]
    specs = [layer.spec for layer in layers if layer.family in (options.families or [layer.family])]
    both = [*specs, *(replace(spec, data_format=CHANNELS_FIRST) for spec in specs)]
    keys = options.specs.read_text(encoding="utf-8").split() if options.specs else []
    return list(dict.fromkeys([*both, *map(Conv3DSpec.parse, keys)]))


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=("measure", "fit"))
    options.add_argument("--threads", type=int, default=available_cpus(), help="of the trials")
    options.add_argument("--mcpu", help="LLVM's name of a processor that this machine can stand for, e.g. x86-64-v3")
    options.add_argument("--layers", type=Path, metavar="FILE.csv", help="to measure, in both formats")
    options.add_argument("--random", type=int, default=40, metavar="N", help="layers drawn at random for each seed")
    options.add_argument("--seeds", type=int, nargs="*", default=[12], metavar="SEED")
    options.add_argument("--specs", type=Path, metavar="FILE", help="to measure, too: a key of a spec in each line")
    options.add_argument("--others", action="store_true", help="plans that pack fewer weights, too: for `--ratios`")
    options.add_argument("--families", nargs="*", metavar="NAME", help="only layers of these, e.g. depthwise grouped")
    options.add_argument("--ghz", type=float, default=3.75, help="clock of the cores under this load")
    options.add_argument(
        "--ratios", action="store_true", help="of costs by which an algorithm chooses its variant, too"
    )
    options.add_argument("--write", action="store_true", help="replace the table by the fitted costs")
    return options


def main() -> None:
    given = _parser().parse_args()
    target = host_target(given.threads)
    if given.mcpu:
        target = resolve({"kind": "llvm", "mcpu": given.mcpu, "num-cores": given.threads}, given.threads)
    if given.action == "measure":
        return measure(target, _specs(given), given.others)
    samples = read(target, given.ghz)
    if not samples:
        raise SystemExit("There are no trials. Run this script with `measure`, or scripts/tune_llvm.py, first.")
    traits = cpu_traits(target)
    in_force = table.table_of(traits).cycles
    print(f"{len(samples)} trials of {len({s.layer for s in samples})} layers")
    tell("in force", samples, in_force)
    fitted = _rounded(fit(samples, in_force, {} if given.ratios else OWN_CHOICE))
    tell("fitted", samples, fitted)
    if given.write:
        command = shlex.join(["python", "scripts/fit_costs.py", *sys.argv[1:]])
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        machine = f"{cpu_name()}, {thread_count(target)} threads"
        print(f"\nwritten: {table.Table(traits.microarchitecture, machine, date, command, fitted).write()}")
    return None


if __name__ == "__main__":
    main()
