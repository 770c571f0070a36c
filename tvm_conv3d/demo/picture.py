"""Three slices of a scan with the outline of its brain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tvm_conv3d.demo.extract import Brain, Scan

#: Name of the slice, the axis it is cut along, and the two axes that remain with their names.
_SLICES = (("axial", 2, (0, 1)), ("coronal", 1, (0, 2)), ("sagittal", 0, (1, 2)))
_LOW, _HIGH = "RPI", "LAS"


def save_picture(scan: Scan, brain: Brain, path: Path) -> None:
    """Write a PNG of the three slices through the middle of the brain (of the scan, if there is none)."""
    # A Figure of its own, without pyplot: no global state, no window, the Agg renderer.
    figure = Figure(figsize=(12, 4.6), facecolor="black", layout="constrained")
    where = np.argwhere(brain.mask)
    centre = where.mean(axis=0).round().astype(int) if len(where) else np.array(scan.data.shape) // 2
    low, high = np.percentile(scan.data, (1, 99.5))
    for axes, (name, axis, (across, up)) in zip(figure.subplots(1, 3), _SLICES, strict=True):
        # Rows of a picture are its second axis.
        image = np.take(scan.data, centre[axis], axis=axis).T
        outline = np.take(brain.mask, centre[axis], axis=axis).T
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=scan.voxel[up] / scan.voxel[across])
        if outline.any() and not outline.all():
            axes.contour(outline.astype(float), levels=[0.5], colors=["#ff4d2e"], linewidths=1.2)
        axes.set_title(f"{name} {centre[axis]}", color="white", fontsize=10)
        axes.set_xlabel(f"{_LOW[across]} - {_HIGH[across]}", color="white", fontsize=8)
        axes.set_ylabel(f"{_LOW[up]} - {_HIGH[up]}", color="white", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(f"brain: {brain.milliliters:.0f} ml", color="white")
    figure.savefig(path, dpi=110)
