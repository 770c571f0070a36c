"""The benchmark's command line: options in, a run out."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm_conv3d.bench import first_calls, plots, report
from tvm_conv3d.bench.client import Client, WorkerError
from tvm_conv3d.bench.peers import PEERS
from tvm_conv3d.bench.rows import Row
from tvm_conv3d.bench.stats import closing
from tvm_conv3d.bench.timing import Comparison, Effort
from tvm_conv3d.reference.layers import Layer, adapt, from_key, read_csv
from tvm_conv3d.reference.random_layers import draw
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DTYPES
from tvm_conv3d.support import roofline
from tvm_conv3d.target.cpu import available_cpus

Say = Callable[[str], None]


def parser() -> argparse.ArgumentParser:
    """All options of the benchmark."""
    options = argparse.ArgumentParser(
        description="Times tvm_conv3d beside other libraries, after checking its numbers."
    )
    options.add_argument("--layers", type=Path, metavar="FILE.csv", help="layers to run, with a bias and relu")
    options.add_argument("--spec", action="append", default=[], metavar="KEY", help="one layer by its key; repeatable")
    options.add_argument("--random", type=int, default=0, metavar="COUNT", help="as many layers drawn at random")
    options.add_argument("--seed", type=int, default=1, help="of the random layers")
    options.add_argument("--filter", default="", metavar="REGEX", help="only layers whose name or family matches")
    options.add_argument("--peers", default="torch", help=f"comma-separated: {', '.join(PEERS)}; or none")
    options.add_argument("--dtype", choices=DTYPES, help="float32 unless the layer says otherwise")
    options.add_argument("--format", choices=(CHANNELS_LAST, CHANNELS_FIRST), help="of our input and output")
    options.add_argument("--threads", type=int, default=available_cpus(), help="all CPUs by default")
    options.add_argument("--rounds", type=int, default=5, help="turns of every library on each layer")
    options.add_argument("--min-time", type=float, default=0.2, metavar="SECONDS", help="least time of a turn")
    options.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="longest wait for an answer")
    options.add_argument("--plot", type=Path, metavar="DIR", help="writes families.png and roofline.png there")
    options.add_argument("--json", type=Path, metavar="FILE", help="writes everything that was measured")
    options.add_argument("--page", type=Path, metavar="FILE.md", help="writes a results page, with pictures beside it")
    options.add_argument("--repro", action="store_true", help="prints a command for each row that runs it alone")
    options.add_argument(
        "--compare",
        metavar="A,B",
        help="two of the peers, B in our place: default,tuned tells what records gain; alone,beside_torch what a call "
        "loses where torch has just run a parallel operator",
    )
    options.add_argument(
        "--first-calls",
        type=int,
        default=0,
        metavar="COUNT",
        help="instead: seconds of the first three calls of so many new sizes of a known layer, nothing cached; "
        "16 to 32 channels, 3x3x3, where no layer is named",
    )
    options.add_argument("--ours", default="tvm_conv3d", metavar="PEER", help="what the others are compared with")
    options.add_argument(
        "--python", action="append", default=[], metavar="PEER=PATH", help="the interpreter that has a peer's library"
    )
    options.add_argument(
        "--modes", action="append", default=[], metavar="PEER=A,B", help="only these modes of a peer, e.g. torch=ndhwc"
    )
    return options


def main(arguments: Sequence[str] | None = None, usual_layers: Path | None = None) -> int:
    """Runs the benchmark; 0 if every layer of ours was right and timed.

    Args:
        arguments: of the command line.
        usual_layers: the file of layers to run where the command line names none.
    """
    options = parser().parse_args(arguments)
    named = options.layers or options.spec or options.random
    if not named and options.first_calls:
        options.spec = [first_calls.USUAL]
    elif not named:
        options.layers = usual_layers
    try:
        if options.first_calls:
            return first_calls.run(selected(options), options.first_calls, options.seed, options.threads)
        if options.compare:
            options.peers, options.ours = _compared(options.compare)
        layers = selected(options)
        clients = _clients(options)
        modes = {name: value.split(",") for name, value in _pairs("--modes", options.modes).items()}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    effort = Effort(options.rounds, options.min_time)
    try:
        return _run(options, layers, Comparison(clients[0], clients[1:], effort, modes), [c.name for c in clients[1:]])
    except WorkerError as error:
        print(f"Nothing to compare: {error}", file=sys.stderr)
        return 2
    finally:
        for client in clients:
            client.close()


def selected(options: argparse.Namespace) -> list[Layer]:
    """The layers that the options name.

    Raises:
        ValueError: none, or one that is not a layer.
    """
    layers = read_csv(options.layers) if options.layers else []
    layers += [from_key(key) for key in options.spec]
    layers += draw(options.random, options.seed)
    pattern = re.compile(options.filter)
    layers = [layer for layer in layers if pattern.search(layer.name) or pattern.fullmatch(layer.family)]
    if not layers:
        raise ValueError(
            "No layer to run: give --layers FILE.csv, --spec KEY or --random COUNT, and a --filter that fits."
        )
    return adapt(layers, options.dtype, options.format)


def _compared(text: str) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise ValueError(f"--compare takes two peers, such as default,tuned. Received: {text!r}")
    return names[0], names[1]


def _clients(options: argparse.Namespace) -> list[Client]:
    names = [name.strip() for name in options.peers.split(",") if name.strip() and name.strip() != "none"]
    for name in [options.ours, *names]:
        if name not in PEERS and ":" not in name:
            raise ValueError(f"A peer must be one of {', '.join(PEERS)}. Received: {name!r}")
    pythons = _pairs("--python", options.python)
    return [
        Client(name, options.threads, pythons.get(name, sys.executable), options.timeout)
        for name in [options.ours, *dict.fromkeys(names)]
    ]


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"{option} takes NAME=VALUE. Received: {name}{equals}{value}")
    return {name: value for name, _, value in pairs}


def _run(options: argparse.Namespace, layers: Sequence[Layer], comparison: Comparison, peers: Sequence[str]) -> int:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    where = report.setting(options.threads, options.rounds, options.min_time, comparison.versions(say))
    print("\n".join(where.lines()), flush=True)
    rows = []
    for number, layer in enumerate(layers, 1):
        row = comparison.run(layer)
        rows.append(row)
        _progress(say, number, len(layers), row, peers)
    print("\n" + "\n".join(report.table(rows, peers)))
    print("\n" + "\n".join(report.summary_lines(closing(rows, peers))))
    if noise := report.noise_line(rows):
        print(noise)
    if options.repro:
        print("\n" + "\n".join(repro(options, row) for row in rows))
    _write(options, where, rows, peers)
    failed = [row.layer.name for row in rows if row.ours.seconds is None]
    if failed:
        say(f"Not right or not timed: {', '.join(failed)}")
    return 1 if failed else 0


def repro(options: argparse.Namespace, row: Row) -> str:
    """A command that runs one row alone; its spec carries element type and data format."""
    command = ["python", "scripts/bench.py", "--spec", row.layer.spec.key()]
    command += ["--compare", options.compare] if options.compare else ["--peers", options.peers]
    command += [
        "--threads",
        str(options.threads),
        "--rounds",
        str(options.rounds),
        "--min-time",
        f"{options.min_time:g}",
    ]
    for name in ("python", "modes"):
        for value in getattr(options, name):
            command += [f"--{name}", value]
    return shlex.join(command)


def _progress(say: Say, number: int, count: int, row: Row, peers: Sequence[str]) -> None:
    name, family, *figures = report.cells(row, peers)
    titles = report.header(peers)[2:]
    told = ", ".join(f"{title} {figure}" for title, figure in zip(titles, figures, strict=True))
    say(f"[{number}/{count}] {name} ({family}): {told}")
    for fault in row.faults():
        say(f"    {fault}")


def _write(options: argparse.Namespace, where: report.Setting, rows: Sequence[Row], peers: Sequence[str]) -> None:
    if options.json:
        report.write_json(options.json, report.as_json(where, rows, peers))
    folder = options.plot or (options.page.parent if options.page else None)
    if folder is None:
        return
    pictures = plots.draw(folder, rows, peers, roofline.measure(options.threads))
    if options.page:
        beside = [picture.name if folder == options.page.parent else str(picture) for picture in pictures]
        command = shlex.join(["python", "scripts/bench.py", *sys.argv[1:]])
        options.page.write_text(report.page(where, rows, peers, beside, command))
