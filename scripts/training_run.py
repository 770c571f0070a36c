"""Trains two networks on crops of a head scan twice, by the framework's own convolutions and by this package's.

`python scripts/training_run.py --page docs/training.md`: MONAI's BasicUNet finds tissue in noise, by PyTorch;
keras-io's CT network tells crops that are upside down, by each of Keras's backends that is installed. Weights, data and
optimizer are the same in both runs, whose steps take turns. Loss curves become a picture beside the page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tvm_conv3d.bench import report
from tvm_conv3d.demo import assets
from tvm_conv3d.demo.extract import sample_scan

#: Cells of a crop along each axis, and crops of a step.
CELLS, BATCH = 64, 2

#: Steps that compile, or find memory for the first time, and count in no median.
WARM_UP = 3

#: What both runs of a framework are called.
WAYS = ("own", "ours")

Step = Callable[[np.ndarray, np.ndarray], float]


def crops(scan: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """(BATCH, CELLS, CELLS, CELLS) of numbers from 0 to 1 for each step, the same at each call.

    Args:
        scan: at least CELLS along each axis.
        steps: how many.
    """
    generator = np.random.default_rng(0)
    scan = (scan / np.percentile(scan, 99)).clip(0, 1).astype(np.float32)
    for _ in range(steps):
        corners = [[int(generator.integers(0, n - CELLS + 1)) for n in scan.shape] for _ in range(BATCH)]
        yield np.stack([scan[tuple(slice(at, at + CELLS) for at in corner)] for corner in corners])


def tissue(crop: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops with noise, channels first, and where they are brighter than a quarter without it."""
    noise = np.random.default_rng(number).normal(0, 0.2, crop.shape)
    return (crop + noise).astype(np.float32)[:, None], (crop > 0.25).astype(np.int64)


def turned(crop: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops, channels last, every other one upside down, and which."""
    given = crop.copy()
    given[number % 2] = given[number % 2, :, :, ::-1]
    return given[..., None], (np.arange(len(crop)) == number % 2).astype(np.float32)[:, None]


def torch_step(ours: bool) -> Step:
    """A step of BasicUNet's: its loss."""
    import torch
    from monai.networks.nets import BasicUNet

    from tvm_conv3d.torch import accelerate

    torch.manual_seed(0)
    net: Any = BasicUNet(spatial_dims=3, in_channels=1, out_channels=2)
    net = accelerate(net) if ours else net
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def step(x: np.ndarray, labels: np.ndarray) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def keras_step(ours: bool) -> Step:
    """A step of the CT network's, without the chance of its dropout: its loss."""
    import keras

    from tvm_conv3d.bench.training.keras_ways import ct_network
    from tvm_conv3d.keras import accelerate

    keras.utils.set_random_seed(0)
    network = ct_network((CELLS, CELLS, CELLS))
    next(layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)).rate = 0.0
    model: Any = accelerate(network) if ours else network
    model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy", jit_compile=keras.backend.backend() == "jax")
    return lambda x, y: float(np.asarray(model.train_on_batch(x, y)).ravel()[0])


def trained(case: str, steps: int) -> dict[str, Any]:
    """Losses and seconds of CPU time of both runs, step by step."""
    scan = sample_scan(assets.read(assets.SCAN)).data
    of_torch = case == "torch"
    make, task = (torch_step, tissue) if of_torch else (keras_step, turned)
    ways = {name: make(name == "ours") for name in WAYS}
    found: dict[str, Any] = {name: {"losses": [], "seconds": []} for name in WAYS}
    for number, crop in enumerate(crops(scan, steps)):
        given = task(crop, number)
        for name, step in ways.items():
            # of all threads: what else runs on the machine takes none of it
            before = time.process_time()
            found[name]["losses"].append(step(*given))
            found[name]["seconds"].append(time.process_time() - before)
    return found


def draw(path: Path, found: dict[str, Any]) -> None:
    """Both loss curves of each framework over each other, with the time of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(found), 4), layout="constrained")
    for axes, (title, runs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for name, width in zip(WAYS, (4, 1.5), strict=True):
            label = f"{name}: {1e3 * median(runs[name]):.0f} ms of CPU time a step"
            axes.plot(runs[name]["losses"], linewidth=width, label=label, alpha=0.5 if name == "own" else 1.0)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
    figure.savefig(path, dpi=100)


def median(run: dict[str, list[float]]) -> float:
    """Seconds of CPU time of a step."""
    return statistics.median(run["seconds"][WARM_UP:])


def page(found: dict[str, Any], setting: list[str], picture: str, command: str) -> str:
    """The page in Markdown."""
    rows = [["network", "first loss", "last, own", "last, ours", "own CPU ms", "ours CPU ms", "ratio"]]
    for title, runs in found.items():
        own, ours = (runs[name] for name in WAYS)
        times = [median(own), median(ours)]
        losses = (own["losses"][0], own["losses"][-1], ours["losses"][-1])
        numbers = [*(f"{loss:.4f}" for loss in losses), *(f"{1e3 * t:.0f}" for t in times)]
        rows.append([title, *numbers, f"{times[0] / times[1]:.2f}"])
    lines = ["# Training", "", *(f"- {line}" for line in setting), "", "Made by", "", f"    {command}", ""]
    lines += [
        f"Crops of {CELLS} x {CELLS} x {CELLS} of a head scan, {BATCH} to a step, Adam. BasicUNet finds tissue in",
        "crops with noise; keras-io's CT network tells those that are upside down. *own* is the framework's eager mode",
        "(on JAX a compiled step, on TensorFlow a `tf.function`), *ours* the accelerated network: same weights, data",
        "and optimizer, steps in turns, in one process. Milliseconds are CPU time of a step, of all threads together;",
        "medians. Rounding errors grow from step to step, in either run.",
    ]
    return "\n".join([*lines, "", *report.markdown(rows), "", f"![loss curves]({picture})", ""])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--page", type=Path, metavar="FILE.md", help="writes a page, and a picture beside it")
    options.add_argument("--case", help=argparse.SUPPRESS)
    options.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.case:
        given.result.write_text(json.dumps(trained(given.case, given.steps)))
        return
    found = {}
    titles = {"torch": "BasicUNet, torch", **{f"keras {b}": f"CT, {b}" for b in ("torch", "tensorflow", "jax")}}
    for case, title in titles.items():
        backend = case.rpartition(" ")[2]
        if find_spec(backend) is None:
            print(f"{title}: {backend} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--case", case, "--result", str(place), "--steps", str(given.steps)]
            subprocess.run(command, check=True, stdout=2, env={**os.environ, "KERAS_BACKEND": backend})
            found[title] = json.loads(place.read_text())
        for name in WAYS:
            run = found[title][name]
            print(
                f"{title}, {name}: loss {run['losses'][-1]:.4f}, {1e3 * median(run):.0f} ms of CPU time a step",
                flush=True,
            )
    if given.page:
        picture = given.page.with_suffix(".png")
        draw(picture, found)
        where = report.setting(len(os.sched_getaffinity(0)), given.steps, 0.0, versions()).where()
        shown = f"python scripts/training_run.py --steps {given.steps} --page {given.page}"
        given.page.write_text(page(found, where, picture.name, shown))


def versions() -> dict[str, str]:
    """Of the packages that decide the figures, as far as they are installed."""
    from importlib import metadata

    names = ("tvm-conv3d", "apache-tvm", "torch", "monai", "keras", "tensorflow", "tensorflow_cpu", "jax")
    installed = {name for each in metadata.distributions() if (name := each.name)}
    return {name: metadata.version(name) for name in names if name in installed}


if __name__ == "__main__":
    main()
