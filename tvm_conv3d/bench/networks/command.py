"""The command line of the benchmark of networks: options in, a run out."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_conv3d.bench import report
from tvm_conv3d.bench.networks import pages, picture, zoo
from tvm_conv3d.bench.networks.results import MODES, Network, Run, closing, network_of
from tvm_conv3d.bench.training import command as training
from tvm_conv3d.support.folders import CACHE_VARIABLE
from tvm_conv3d.target.cpu import available_cpus

#: Packages whose versions decide the figures.
PACKAGES = ("tvm-conv3d", "apache-tvm", "torch", "torchvision", "monai")

#: Where this package and torch's compiler keep what they have compiled.
_CACHES = (CACHE_VARIABLE, "TORCHINDUCTOR_CACHE_DIR")

#: Variables by which users change threads, memory or compilers of the libraries.
_VARIABLES = r"(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|MALLOC|TORCH|TORCHINDUCTOR|TVM)_.*|LD_PRELOAD"

#: A process that does not answer, as code that is not Python's hangs, is ended after so many limits of each mode.
_LIMITS = 3


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        description="Times whole networks of PyTorch in torch's own modes and by tvm_conv3d, after checking outputs."
    )
    options.add_argument(
        "--networks",
        default=",".join(zoo.USUAL),
        help=f"comma-separated: {', '.join(zoo.NETWORKS)}; module:function; or none, to show what --json holds",
    )
    options.add_argument("--modes", default=",".join(MODES), help=f"comma-separated: {', '.join(MODES)}")
    options.add_argument("--rounds", type=int, default=7, help="turns of every mode of a network")
    options.add_argument("--threads", type=int, default=available_cpus(), help="all CPUs by default")
    options.add_argument(
        "--limit", type=float, default=300.0, metavar="SECONDS", help="for preparing a mode and its first call"
    )
    options.add_argument(
        "--training",
        action="store_true",
        help="times steps of training, and Keras's CT network, in place of --networks",
    )
    options.add_argument("--small", action="store_true", help="with --training: tiny networks, to see that all runs")
    options.add_argument("--cold", action="store_true", help="first calls find no caches on disk, ours or torch's")
    options.add_argument("--profile", action="store_true", help="the fastest modes' time by kind of operator, too")
    options.add_argument("--memory", action="store_true", help="peak memory of each mode, in processes of their own")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="writes everything that was measured; other networks in it stay"
    )
    options.add_argument("--plot", type=Path, metavar="DIR", help="writes networks.png there")
    options.add_argument("--page", type=Path, metavar="FILE.md", help="writes a page, with the picture beside it")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 if every mode of ours that exists was right and timed."""
    options = parser().parse_args(arguments)
    if options.training:
        return training.run(options, _versions((*PACKAGES, "keras", *training.BACKENDS[1:])))
    try:
        names, modes = _names(options.networks, options.modes)
        command = shlex.join(
            ["python", "scripts/bench_networks.py", *(sys.argv[1:] if arguments is None else arguments)]
        )
        run = _begun(options.json, options.threads, options.rounds, command if names else "")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(run.setting.where()), flush=True)
    for number, name in enumerate(names, 1):
        run.networks[name] = found = measured(name, modes, options)
        _tell(f"[{number}/{len(names)}] {name}", found)
        _write(options.json, run)
        if options.memory:
            weigh(found, options)
            _write(options.json, run)
    _show(list(run.networks.values()))
    _draw(options, run)
    failures = [line for name in names for line in run.networks[name].failures()]
    for line in failures:
        print(f"Not right or not timed: {line}", file=sys.stderr)
    return 1 if failures else 0


def measured(name: str, modes: Sequence[str], options: argparse.Namespace) -> Network:
    """One network in its modes, by a process of its own."""
    task = _task(name, modes, options)
    task["profile"] = options.profile
    answer = _answer("measure", task, _LIMITS * options.limit * len(modes), options.cold)
    found = Network(name, note=answer["note"]) if "name" not in answer else network_of(answer)
    found.cold = options.cold
    found.date = datetime.now(timezone.utc).strftime(report.DATE)
    return found


def weigh(network: Network, options: argparse.Namespace) -> None:
    """Adds the peak memory of each mode that was timed, by a process for each."""
    for mode, timing in network.modes.items():
        if timing.seconds:
            answer = _answer("peak", _task(network.name, [mode], options), _LIMITS * options.limit)
            timing.memory, timing.note = answer.get("memory"), answer.get("note", timing.note)


def _task(name: str, modes: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Fields of a worker's task."""
    common = {each: getattr(options, each) for each in ("rounds", "threads", "limit")}
    return {"network": name, "modes": list(modes), **common}


def _answer(do: str, task: dict[str, Any], timeout: float, cold: bool = False) -> dict[str, Any]:
    """What a worker wrote, or a note of how it ended; with caches of its own where it is to find none."""
    with tempfile.TemporaryDirectory() as folder:
        places = {variable: str(Path(folder) / variable) for variable in _CACHES} if cold else {}
        place = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "tvm_conv3d.bench.networks.worker", do, json.dumps(task), str(place)]
        try:
            # what libraries print is not for the table: it goes where errors go
            done = subprocess.run(command, stdout=2, timeout=timeout, check=False, env={**os.environ, **places})
        except subprocess.TimeoutExpired:
            return {"note": f"no answer within {timeout:.0f} s"}
        if done.returncode:
            return {"note": f"its process ended with status {done.returncode}"}
        answer: dict[str, Any] = json.loads(place.read_text())
        return answer


def _names(networks: str, modes: str) -> tuple[list[str], list[str]]:
    """The networks and modes of the command line, each once."""
    found = [name.strip() for name in networks.split(",") if name.strip() and name.strip() != "none"]
    zoo.check(found)
    wanted = [mode.strip() for mode in modes.split(",") if mode.strip()]
    for mode in wanted:
        if mode not in MODES:
            raise ValueError(f"A mode must be one of {', '.join(MODES)}. Received: {mode!r}")
    return list(dict.fromkeys(found)), list(dict.fromkeys(wanted))


def _begun(path: Path | None, threads: int, rounds: int, command: str) -> Run:
    """The run that a file holds, or a new one.

    Raises:
        ValueError: the file's run was made under other conditions, or there is none to show.
    """
    kept = Run.read(path) if path is not None and path.exists() else None
    if not command:
        if kept is None:
            raise ValueError("--networks none shows what a file holds. Name it: --json FILE")
        return kept
    environment = {
        name: value
        for name, value in sorted(os.environ.items())
        if re.fullmatch(_VARIABLES, name) and name not in _CACHES
    }
    run = Run(report.setting(threads, rounds, 0.0, _versions()), environment, [command])
    if kept is None:
        return run
    for name, value in run.conditions.items():
        if kept.conditions[name] != value:
            raise ValueError(
                f"{path} holds a run with other {name}: {kept.conditions[name]}, now {value}. What is compared must "
                "be measured alike: name another file."
            )
    kept.commands = list(dict.fromkeys((*kept.commands, command)))
    return kept


def _write(path: Path | None, run: Run) -> None:
    if path is not None:
        run.write(path)


def _versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _tell(title: str, network: Network) -> None:
    ratio = network.ratio()
    told = [f"{mode} {1e3 * seconds:.1f} ms" for mode in network.modes if (seconds := network.median(mode)) is not None]
    told += [] if ratio is None else [f"ratio {ratio:.2f}"]
    print("\n".join((f"{title}: {', '.join(told)}", *(f"    {line}" for line in pages.notes([network])))), flush=True)


def _show(networks: Sequence[Network]) -> None:
    tables = [pages.ratios(networks), pages.by_mode(networks, pages.first_call)]
    tables += [pages.by_mode(networks, pages.memory), pages.kinds(networks)]
    titles = ("", pages.first_calls_title(networks), "peak resident MiB", "ms by kind of operator")
    for title, table in zip(titles, tables, strict=True):
        if any(cell != report.NOTHING for row in table[1:] for cell in row[1:]):
            print("\n" + "\n".join((*([title] if title else []), *report.aligned(table, (0, 1)))))
    print("\n" + "\n".join(report.summary_lines(closing(networks))))
    print("\n" + "\n".join(pages.bars(networks)))


def _draw(options: argparse.Namespace, run: Run) -> None:
    folder = options.plot or (options.page.parent if options.page else None)
    if folder is None:
        return
    drawn = picture.draw(folder, list(run.networks.values()))
    if options.page:
        beside = drawn.name if folder == options.page.parent else str(drawn)
        options.page.write_text(pages.page(run, [beside]))
