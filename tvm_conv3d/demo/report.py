"""What the run cost, layer by layer."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from rich.table import Table


@dataclass
class Row:
    """One step: its convolution (with spec key), or what else it did."""

    name: str
    what: str
    origin: str = ""
    gflop: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def layer_table(rows: list[Row], total: float) -> Table:
    """A table of the convolutions, the sum of all other work, and the median of whole runs.

    Args:
        rows: the steps in their order; a row without `gflop` is not a convolution.
        total: seconds of a whole run.
    """
    table = Table(title="layers (medians)", show_footer=True)
    convolutions = [row for row in rows if row.gflop]
    rest = [row for row in rows if not row.gflop]
    gflop = sum(row.gflop for row in convolutions)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("spec key", overflow="fold")
    table.add_column("ms", f"{1e3 * total:.1f}", justify="right", no_wrap=True)
    table.add_column("GFLOP/s", f"{gflop / total:.1f}", justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold")
    for row in convolutions:
        milliseconds, speed = f"{1e3 * row.median:.2f}", f"{row.gflop / row.median:.1f}"
        table.add_row(row.name, row.what, milliseconds, speed, row.origin)
    others = ", ".join(sorted({row.what for row in rest}))
    table.add_row("other", f"{others} (NumPy)", f"{1e3 * sum(row.median for row in rest):.2f}", "", "", style="dim")
    return table
