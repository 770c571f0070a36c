"""The demo from end to end: fetch, read, compile, run, write, tell."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import tvm_conv3d
from tvm_conv3d.demo import assets
from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.demo.extract import SIZE, Brain, Scan, load_scan, postprocess, preprocess, sample_scan, save_mask
from tvm_conv3d.demo.graph import Concat, Program, Step, lower
from tvm_conv3d.demo.network import Network
from tvm_conv3d.demo.picture import save_picture
from tvm_conv3d.demo.report import Row, layer_table

#: Wide enough for a spec key when the output goes into a file.
FILE_WIDTH = 180
INPUT, SWITCH, OUTPUT = "img", "training", "prob"


@dataclass
class Timings:
    """Seconds of all passes; the first one, which compiles, is kept apart."""

    first: float = 0.0
    passes: list[float] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.passes)


@dataclass(frozen=True, eq=False)
class Result:
    """What the demo found and wrote."""

    brain: Brain
    fraction: float
    timings: Timings
    mask_file: Path
    picture_file: Path


def run(
    input_file: Path | None = None,
    output_dir: Path = Path("demo_output"),
    threads: int | None = None,
    repeat: int = 5,
    console: Console | None = None,
) -> Result:
    """Extract the brain from a head scan.

    Args:
        input_file: the scan; None takes the published sample.
        output_dir: folder for the mask and the picture, made if need be.
        threads: threads to use; None means all CPUs that the process may use.
        repeat: timed passes of the network.
        console: where to tell of it.

    Raises:
        DemoError: the input is no head scan, the network cannot be fetched, the output cannot be written.
    """
    if repeat < 1 or (threads is not None and threads < 1):
        raise DemoError(f"`threads` and `repeat` must be at least 1. Received: threads={threads}, repeat={repeat}")
    console = console or make_console()
    _make_folder(output_dir)
    scan = _read_scan(input_file, console)
    with _download_bar(console) as progress:
        frozen = assets.read(assets.NETWORK, progress)
    image = preprocess(scan.data)
    if threads is not None:
        tvm_conv3d.set_num_threads(threads)
    program = lower(frozen, OUTPUT, {INPUT: (1, *SIZE, 1)}, {SWITCH: False})
    network = Network(program, tvm_conv3d.get_num_threads())
    probabilities, timings = _run_network(network, program, image, repeat, console)
    brain = postprocess(scan, probabilities)
    name = _stem(input_file)
    mask_file, picture_file = output_dir / f"{name}_brain_mask.nii.gz", output_dir / f"{name}_brain.png"
    try:
        save_mask(scan, brain, mask_file)
        save_picture(scan, brain, picture_file)
    except OSError as error:
        raise DemoError(f"The results cannot be written to {output_dir}: {error}") from error
    result = Result(brain, float((probabilities > 0.5).mean()), timings, mask_file, picture_file)
    _tell(result, console)
    return result


def make_console() -> Console:
    """A console; in a file or a pipe lines are wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"The output folder {folder} cannot be made: {error}. Choose another with --output.") from error
    if not os.access(folder, os.W_OK):
        raise DemoError(f"The output folder {folder} cannot be written. Choose another with --output.")


def _read_scan(input_file: Path | None, console: Console) -> Scan:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if input_file is not None:
            scan = load_scan(input_file)
        else:
            with _download_bar(console) as progress:
                scan = sample_scan(assets.read(assets.SCAN, progress))
    for warning in caught:
        console.print(f"[yellow]warning:[/] {escape(str(warning.message))}", highlight=False)
    wheel = assets.SCAN
    source = str(input_file) if input_file else f"sample of {wheel.package} {wheel.version} ({wheel.licence} licence)"
    grid = " x ".join(map(str, scan.data.shape))
    voxel = " x ".join(f"{v:.3g}" for v in scan.voxel)
    console.print(f"scan:    {source}, {grid} voxels of {voxel} mm", highlight=False, markup=False)
    return scan


def _run_network(
    network: Network, program: Program, image: np.ndarray, repeat: int, console: Console
) -> tuple[np.ndarray, Timings]:
    """One pass that compiles, with a bar, then `repeat` timed ones."""
    wheel = assets.NETWORK
    layers = [step for step in program.steps if network.is_convolution(step)]
    console.print(
        f"network: {wheel.package} {wheel.version} ({wheel.licence} licence), {len(layers)} convolutions",
        highlight=False,
    )
    timings = Timings()
    columns = (TextColumn("compiling"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[layer]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("compile", total=len(layers), layer="")
        start = time.perf_counter()
        network.run(image, lambda step, *_: bar.update(task, advance=network.is_convolution(step), layer=step.name))
        timings.first = time.perf_counter() - start
    timings.rows = _rows(network, program)

    def note(step: Step, convolving: float, whole: float) -> None:
        if network.is_convolution(step):
            timings.rows[step.name].seconds.append(convolving)
        if (rest := timings.rows.get(f"{step.name} (rest)")) is not None:
            rest.seconds.append(whole - convolving)

    with console.status(f"timing {repeat} passes"):
        for _ in range(repeat):
            start = time.perf_counter()
            probabilities = network.run(image, note)
            timings.passes.append(time.perf_counter() - start)
    return probabilities, timings


def _rows(network: Network, program: Program) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for step in program.steps:
        plan = network.plan(step)
        if plan is not None:
            rows[step.name] = Row(step.name.split("/")[0], plan.spec.key(), plan.origin_name, plan.spec.gflop)
        if plan is None:
            what = "concatenation" if isinstance(step, Concat) else "max-pools"
            rows[f"{step.name} (rest)"] = Row(step.name, what)
    return rows


def _stem(input_file: Path | None) -> str:
    if input_file is None:
        return "sample"
    name = input_file.name
    return name.removesuffix(".gz").rsplit(".", 1)[0] or name


@contextmanager
def _download_bar(console: Console) -> Iterator[assets.Progress]:
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, arrived: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=size)
            bar.update(tasks[name], completed=arrived)

        yield progress


def _tell(result: Result, console: Console) -> None:
    timings, brain = result.timings, result.brain
    console.print(layer_table(list(timings.rows.values()), timings.median))
    console.print(
        f"first pass, kernels compiled or loaded: {timings.first:.2f} s\n"
        f"network: {1e3 * timings.median:.0f} ms (median of {len(timings.passes)} passes)\n"
        f"brain:   {brain.milliliters:.0f} ml, {100 * result.fraction:.3f} % of the network's grid\n"
        f"mask:    {result.mask_file}\n"
        f"picture: {result.picture_file}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not brain.mask.any():
        console.print("[yellow]warning:[/] no brain was found. Is this a T1-weighted scan of a whole head?")
