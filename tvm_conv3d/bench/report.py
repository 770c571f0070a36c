"""What a run leaves behind: a header, an aligned table, closing lines, JSON and a Markdown page."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvm_conv3d.bench.rows import Row, Timing
from tvm_conv3d.bench.stats import Summary, closing
from tvm_conv3d.target.cpu import available_cpus, cpu_name

NOTHING = "-"
#: How dates are written.
DATE = "%Y-%m-%d %H:%M UTC"
#: Turns of one library on one layer that differ by more than this factor were disturbed by something else.
NOISY = 1.5


@dataclass(frozen=True)
class Setting:
    """Where and how a run was made."""

    cpu: str
    threads: int
    cpus: int
    system: str
    date: str
    rounds: int
    min_time: float
    versions: dict[str, str]

    @property
    def machine(self) -> str:
        return f"{self.cpu}, {self.threads} threads on {self.cpus} CPUs, {self.system}"

    def where(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [f"{self.date}, {self.machine}", versions]

    def lines(self) -> list[str]:
        return [
            *self.where(),
            f"medians of {self.rounds} interleaved rounds of at least {self.min_time:g} s; GF/s count the direct "
            "convolution's operations",
        ]


def setting(threads: int, rounds: int, min_time: float, versions: dict[str, str]) -> Setting:
    """This machine, now."""
    return Setting(
        cpu=cpu_name(),
        threads=threads,
        cpus=available_cpus(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        date=datetime.now(timezone.utc).strftime(DATE),
        rounds=rounds,
        min_time=min_time,
        versions=versions,
    )


def header(peers: Sequence[str]) -> list[str]:
    """The table's column titles."""
    return ["layer", "family", "ours ms", "GF/s", *(f"{peer} ms" for peer in peers), "ratio", "rel. error", "plan"]


def cells(row: Row, peers: Sequence[str]) -> list[str]:
    """One row of the table; a star marks numbers that the oracle refused."""
    ratio = row.ratio()
    return [
        row.layer.name,
        row.layer.family,
        _time(row.ours),
        NOTHING if row.gflops is None else f"{row.gflops:.0f}",
        *(_time(row.peers.get(peer, Timing())) for peer in peers),
        NOTHING if ratio is None else f"{ratio:.2f}",
        NOTHING if row.ours.error is None else f"{row.ours.error:.1e}",
        row.ours.origin or NOTHING,
    ]


def table(rows: Sequence[Row], peers: Sequence[str]) -> list[str]:
    """Aligned lines, the same on a terminal and in a pipe."""
    titles = header(peers)
    return aligned([titles, *(cells(row, peers) for row in rows)], {0, 1, len(titles) - 1})


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """A table's lines with a rule below the first; the columns of `left` begin at the left, others end at the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = (
        "  ".join(text.ljust(width) if i in left else text.rjust(width) for i, (text, width) in _columns(line, widths))
        for line in lines
    )
    head, *body = (line.rstrip() for line in padded)
    return [head, "-" * len(head), *body]


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """The same in Markdown."""
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return [head, "|" + "---|" * len(lines[0]), *body]


def means(title: str, counted: str, summaries: Sequence[Summary]) -> list[str]:
    """The geometric means in Markdown."""
    rows = [[s.title.strip(), f"{s.mean:.2f}", str(s.count), f"{s.least:.2f} {s.least_name}"] for s in summaries]
    return markdown([[title, "geometric mean", counted, "least"], *rows])


def summary_lines(summaries: Sequence[Summary]) -> list[str]:
    """The geometric means with their least rows."""
    if not summaries:
        return ["no row to compare"]
    width = max(len(summary.title) for summary in summaries)
    return ["peer's time / ours, geometric mean"] + [
        f"  {s.title.ljust(width)}  {s.mean:6.2f}  {s.count:3d} rows, least {s.least:.2f} ({s.least_name})"
        for s in summaries
    ]


def noise_line(rows: Sequence[Row]) -> str:
    """Names the rows whose turns disagree, on either side of the ratio; empty where there are none."""
    noisy = [
        row.layer.name
        for row in rows
        if max(timing.spread for timing in (row.ours, row.peers.get(row.fastest or "", Timing()))) > NOISY
    ]
    return f"turns differ by more than {NOISY:g} times, measure again: {', '.join(noisy)}" if noisy else ""


def as_json(where: Setting, rows: Sequence[Row], peers: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "setting": dataclasses.asdict(where),
        "rows": [
            {
                "layer": row.layer.name,
                "spec": row.layer.spec.key(),
                "family": row.layer.family,
                "gflop": row.layer.spec.gflop,
                "ratio": row.ratio(),
                "ratios": {peer: row.ratio(peer) for peer in row.peers},
                "ours": _plain(row.ours),
                "peers": {name: _plain(timing) for name, timing in row.peers.items()},
            }
            for row in rows
        ],
        "summary": [dataclasses.asdict(summary) for summary in closing(rows, peers)],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def page(where: Setting, rows: Sequence[Row], peers: Sequence[str], pictures: Sequence[str], command: str) -> str:
    """A Markdown page of the run."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in where.lines()), "", "Made by", "", f"    {command}", ""]
    lines += markdown([header(peers), *(cells(row, peers) for row in rows)])
    lines += ["", *means("peer's time / ours", "rows", closing(rows, peers))]
    lines += [f"\n![{Path(picture).stem}]({picture})" for picture in pictures]
    return "\n".join(lines) + "\n"


def _plain(timing: Timing) -> dict[str, Any]:
    """JSON has no infinity; where nothing could be compared the error is absent, and `wrong` says so."""
    fields = dataclasses.asdict(timing)
    if timing.error is not None and not math.isfinite(timing.error):
        fields["error"] = None
    return fields


def _time(timing: Timing) -> str:
    if timing.wrong:
        return "wrong*"
    return NOTHING if timing.seconds is None else f"{1e3 * timing.seconds:.3f}"


def _columns(line: Sequence[str], widths: Sequence[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(line, widths, strict=True)))
