"""Two pictures of a run: speed by family, and every layer under the machine's roof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tvm_conv3d.bench.rows import Row
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.roofline import Roof

ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


def bytes_moved(spec: Conv3DSpec) -> int:
    """Bytes that cross the memory at least once: input, weights and output."""
    count = 0
    for shape in (spec.input_shape, spec.kernel_shape, spec.output_shape):
        cells = 1
        for n in shape:
            cells *= n
        count += cells
    return count * ITEM_BYTES[spec.dtype]


def family_speeds(rows: Sequence[Row], peers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Family -> library -> geometric mean of its GF/s, over the rows that it computed."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        timings = {"ours": row.ours, **{peer: row.peers[peer] for peer in peers if peer in row.peers}}
        for name, timing in timings.items():
            if timing.seconds is not None:
                family = speeds.setdefault(row.layer.family, {})
                family.setdefault(name, []).append(row.layer.spec.gflop / timing.seconds)
    return {
        family: {name: geometric_mean(values) for name, values in by_name.items()} for family, by_name in speeds.items()
    }


def draw(folder: Path, rows: Sequence[Row], peers: Sequence[str], roof: Roof) -> list[Path]:
    """Writes `families.png` and `roofline.png` into `folder`.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"families.png": _families, "roofline.png": _roofline}
    for name, paint in pictures.items():
        figure = Figure(figsize=(11, 6), layout="constrained")
        paint(figure.subplots(), rows, peers, roof)
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in pictures]


def _families(axes: Any, rows: Sequence[Row], peers: Sequence[str], roof: Roof) -> None:
    speeds = family_speeds(rows, peers)
    names = [name for name in ("ours", *peers) if any(name in by_name for by_name in speeds.values())]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [by_name.get(name, 0.0) for by_name in speeds.values()]
        centres = [index + (place - (len(names) - 1) / 2) * width for index in range(len(speeds))]
        axes.bar(centres, heights, width, label=name)
    axes.axhline(roof.gflops, color="black", linewidth=0.8, linestyle="--", label="matrix product")
    axes.set_xticks(range(len(speeds)), list(speeds), rotation=30, ha="right")
    axes.set_ylabel("GF/s of the direct convolution, geometric mean")
    axes.legend()


def _roofline(axes: Any, rows: Sequence[Row], peers: Sequence[str], roof: Roof) -> None:
    intensities = {row.layer.name: 1e9 * row.layer.spec.gflop / bytes_moved(row.layer.spec) for row in rows}
    ends = [min(intensities.values(), default=1.0) / 2, max(intensities.values(), default=1.0) * 2]
    ridge = roof.gflops / roof.bandwidth
    line = sorted([*ends, ridge])
    axes.loglog(line, [min(roof.gflops, roof.bandwidth * x) for x in line], color="black", label="roof (NumPy)")
    for name, marker in (("ours", "o"), ("fastest peer", "x")):
        points = []
        for row in rows:
            timing = row.ours if name == "ours" else row.peers.get(row.fastest or "")
            if timing is not None and timing.seconds is not None:
                points.append((intensities[row.layer.name], row.layer.spec.gflop / timing.seconds))
        axes.scatter(*zip(*points, strict=True) if points else ((), ()), marker=marker, label=name)
    axes.set_xlabel("operations per byte of input, weights and output")
    axes.set_ylabel("GF/s of the direct convolution (fewer multiplications go through the roof)")
    axes.legend()
