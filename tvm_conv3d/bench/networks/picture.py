"""A picture of a run of networks: how many times faster ours is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvm_conv3d.bench.networks.results import OUR_MODES, Network


def draw(folder: Path, networks: Sequence[Network]) -> Path:
    """Writes `networks.png` into `folder`: a bar for each of our modes of each network, torch's fastest mode over it.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    shown = [network for network in networks if network.ratio() is not None]
    modes = [mode for mode in OUR_MODES if any(network.ratio(mode) for network in shown)]
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(modes))
    for place, mode in enumerate(modes):
        centres = [index + (place - (len(modes) - 1) / 2) * width for index in range(len(shown))]
        axes.bar(centres, [network.ratio(mode) or 0.0 for network in shown], width, label=mode)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="torch's fastest mode")
    axes.set_xticks(range(len(shown)), [network.name for network in shown], rotation=30, ha="right")
    axes.set_ylabel("torch's time / ours")
    axes.legend()
    figure.savefig(folder / "networks.png", dpi=120)
    return folder / "networks.png"
