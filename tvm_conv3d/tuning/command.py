"""The command line of tuning, behind the scripts."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_conv3d.engine import records
from tvm_conv3d.engine.plan import DEFAULT_ORIGIN
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.compatibility import check_runs_here, gpu_target, requested_target
from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.support import roofline
from tvm_conv3d.target.cpu import available_cpus, is_cuda, thread_count
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.gpu import ARCHITECTURES, gpu_traits
from tvm_conv3d.target.resolve import target_key
from tvm_conv3d.tuning import show, tasks
from tvm_conv3d.tuning.arguments import address
from tvm_conv3d.tuning.campaign import Campaign
from tvm_conv3d.tuning.gpu_rpc import GpuRpcMeasurer
from tvm_conv3d.tuning.journal import Journal
from tvm_conv3d.tuning.layer import Outcome, Tuning
from tvm_conv3d.tuning.measurement_host import MeasurementHost
from tvm_conv3d.tuning.rpc import RpcMeasurer
from tvm_conv3d.tuning.search import Options
from tvm_conv3d.tuning.tasks import Task

#: What the search needs beside the package's own dependencies.
PACKAGES = ("xgboost", "psutil", "cloudpickle", "rich")

#: Trials of a layer where neither their number nor the time is given, and where only the time is.
USUAL_TRIALS, MANY_TRIALS = 128, 1000

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class UsageError(Exception):
    """The command line can't be followed; the text says why and what to do."""


@dataclass
class Run:
    """One run of the command."""

    options: argparse.Namespace
    target: Target
    tasks: list[Task]
    console: Any
    peak: float | None = None

    @property
    def trials(self) -> int:
        if self.options.trials is not None:
            return int(self.options.trials)
        return USUAL_TRIALS if math.isinf(self.options.time_budget) else MANY_TRIALS


def parser(kind: str) -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(
        description="Searches for faster plans of convolutions, and keeps what it finds as tuning records, which every "
        "process of this user takes from then on. Ctrl-C keeps what was measured; the same command goes on from there."
    )
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("--layers", type=Path, metavar="FILE.csv", help="layers in the benchmark's columns")
    what.add_argument("--spec", action="append", metavar="KEY", help="a spec's key; may be repeated")
    what.add_argument("--random", type=_positive, metavar="COUNT", help="layers drawn at random, by the seed")
    what.add_argument("--model", type=Path, metavar="MODEL.keras", help="every Conv3D of a saved Keras model")
    found.add_argument(
        "--input-shape", type=_shape, metavar="N,D,H,W,C", help="of the model's input, where it leaves sizes open"
    )
    found.add_argument("--trials", type=_positive, metavar="N", help=f"of each layer; default: {USUAL_TRIALS}")
    found.add_argument(
        "--time-budget", type=_duration, default=math.inf, metavar="TIME", help="of the whole run: 90s, 20m, 2h"
    )
    found.add_argument("--target", default=kind, metavar="JSON", help="of TVM, as JSON; default: this machine's")
    found.add_argument("--threads", type=_positive, metavar="N", help="default: all CPUs the process may use")
    found.add_argument("--rpc", type=address, metavar="HOST:PORT", help="measure on a device behind a TVM RPC tracker")
    found.add_argument("--rpc-key", default="default", metavar="KEY", help="the device's key; default: %(default)s")
    found.add_argument("--dry-run", action="store_true", help="list the layers and what the records hold")
    found.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the search")
    found.add_argument("--seed", type=_positive, default=1, metavar="N", help="repeats the choices of a run")
    found.add_argument("--out", type=Path, metavar="FOLDER", help="of tuning logs; default: the user's own")
    found.add_argument("--plain", action="store_true", help="no live display")
    return found


def main(arguments: Sequence[str] | None = None, kind: str = "llvm") -> int:
    """Runs the command; returns the exit status: 0, 1 where a layer failed, 2 for bad usage, 130 after Ctrl-C."""
    options = parser(kind).parse_args(arguments)
    try:
        return _run(options, kind)
    except UsageError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, kind: str) -> int:
    _check_packages(PACKAGES + (("matplotlib",) if options.plot else ()) + (("tornado",) if options.rpc else ()))
    if options.threads:
        threads.set_num_threads(options.threads)
    target = _target(options, kind)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    run = Run(options, target, _tasks(options), console)
    if options.dry_run:
        _list(run)
        return 0
    # the measuring process reads it from the environment
    os.environ[threads.VARIABLE] = str(thread_count(target))
    threads.set_num_threads(thread_count(target))
    if options.rpc is None and not is_cuda(target):
        run.peak = roofline.measure(thread_count(target)).gflops
    with _measurement_host(run) as host:
        return _tune_all(run, host)


def _tune_all(run: Run, host: MeasurementHost) -> int:
    options = Options(run.trials, seed=run.options.seed)
    budget = run.options.time_budget
    # where time ends the search, so many trials are not expected
    expected = run.trials if run.options.trials is not None or math.isinf(budget) else None
    with show.Progress(run.console, len(run.tasks), run.peak, run.options.plain, budget) as progress:

        def start(task: Task) -> Tuning:
            return Tuning(task.spec, host, options, run.options.out, functools.partial(progress.update, task.spec))

        campaign = Campaign(run.tasks, start, budget, lambda task: progress.begin(task, expected), progress.end)
        done = campaign.run()
    run.console.print(show.table(done, run.peak))
    _draw(run, done)
    if campaign.interrupted:
        run.console.print("Stopped. The same command goes on from here.")
    if campaign.interrupted and not campaign.failed:
        return 130
    return 1 if campaign.failed or any(outcome.unwritten for _, outcome in done) else 0


def _draw(run: Run, done: list[tuple[Task, Outcome]]) -> None:
    if run.options.plot:
        try:
            show.draw(run.options.plot, done)
        except (OSError, ValueError) as error:
            run.console.print(f"The picture can't be written: {error}", style="red")


def _list(run: Run) -> None:
    """What a run would tune, and what the records hold."""
    from rich.table import Table

    out = run.options.out if run.options.out and run.options.out.exists() else None
    found = Table(title=f"{len(run.tasks)} layers for {target_key(run.target)}, {thread_count(run.target)} threads")
    for name in ("layer", "spec", "ms", "gain", "trials kept", "origin"):
        found.add_column(name, overflow="fold")
    for task in run.tasks:
        trials = str(len(Journal(task.spec, run.target).trials))
        try:
            origin = make_plan(task.spec, run.target, out).origin
        except ValueError as error:
            found.add_row(task.name, task.spec.key(), "-", "-", trials, str(error))
            continue
        held = [f.record for f in records.find(task.spec, run.target, out) if str(f.file) == origin]
        times = ("-", "-")
        if origin != DEFAULT_ORIGIN and held:
            times = (f"{1e3 * held[0].seconds:.3f}", f"{held[0].default_seconds / held[0].seconds:.2f}x")
        found.add_row(task.name, task.spec.key(), *times, trials, origin)
    run.console.print(found)


def _tasks(options: argparse.Namespace) -> list[Task]:
    try:
        if options.layers:
            found = tasks.from_csv(options.layers)
        elif options.model:
            found = tasks.from_model(options.model, options.input_shape)
        elif options.random:
            found = tasks.at_random(options.random, options.seed)
        else:
            found = [tasks.from_key(key) for key in options.spec]
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError(f"There is no Conv3D to tune. Received: {options.layers or options.model}")
    return tasks.distinct(found)


def _target(options: argparse.Namespace, kind: str) -> Target:
    """The target; raises UsageError where it is none of this kind, or can't be measured here."""
    requested: Any = options.target
    if requested.lstrip().startswith("{"):
        try:
            requested = json.loads(requested)
        except ValueError as error:
            raise UsageError(f"`--target` is no JSON: {error}. Received: {options.target}") from error
    if requested == "cuda" and options.rpc:
        raise UsageError("Name the architecture of the remote GPU: --target cuda:sm_90, say.")
    if requested == "cuda" and options.dry_run:
        requested = _some_gpu()
    try:
        target = requested_target(requested, threads.get_num_threads())
        if options.rpc is None and not options.dry_run:
            check_runs_here(target)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if options.rpc is None and thread_count(target) > available_cpus():
        raise UsageError(
            f"{thread_count(target)} threads can't be measured on {available_cpus()} CPUs. Take fewer `--threads`."
        )
    return target


def _some_gpu() -> str:
    """This machine's GPU, else the newest that code is made for: what the records hold can be told without one."""
    try:
        return f"cuda:{gpu_traits(gpu_target(0)).name}"
    except ValueError as error:
        arch = max(ARCHITECTURES.values(), key=lambda traits: traits.arch).name
        print(f"The records for {arch} are listed. {error}", file=sys.stderr)
        return f"cuda:{arch}"


def _measurement_host(run: Run) -> MeasurementHost:
    if run.options.rpc is None:
        return MeasurementHost(run.target, device=driver.device(0).name if is_cuda(run.target) else None)
    host, port = run.options.rpc
    where = (host, port, run.options.rpc_key)
    try:
        if is_cuda(run.target):
            measurer: RpcMeasurer = GpuRpcMeasurer(*where, gpu_traits(run.target))
        else:
            measurer = RpcMeasurer(*where, thread_count(run.target))
    except (RuntimeError, OSError) as error:
        raise UsageError(str(error)) from error
    return MeasurementHost(run.target, measurer=measurer, device=measurer.device)


def _check_packages(names: Sequence[str]) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UsageError(f"Packages are missing: {names}. Run: pip install 'tvm-conv3d[tuning]' {names}")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"an integer in 1..2147483647 is wanted, not {text!r}")
    return int(text)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"a time such as 90s, 20m or 2h is wanted, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"five integers joined by commas are wanted, not {text!r}")
    return tuple(map(int, parts))
