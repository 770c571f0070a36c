"""What the closing lines say: ratios and their geometric means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from tvm_conv3d.bench.rows import OURS, Row


@dataclass(frozen=True)
class Summary:
    """The ratios of some rows: how many, their geometric mean, and the least with its layer."""

    title: str
    count: int
    mean: float
    least: float
    least_name: str


def summarise(title: str, rows: Iterable[Row], peer: str | None = None, of: str | None = None) -> Summary | None:
    """The ratios of `rows`, see :meth:`Row.ratio`; None where there is nothing to compare."""
    ratios = [(ratio, row.layer.name) for row in rows if (ratio := row.ratio(peer, of)) is not None]
    if not ratios:
        return None
    least, name = min(ratios)
    return Summary(title, len(ratios), geometric_mean(ratio for ratio, _ in ratios), least, name)


def closing(rows: Sequence[Row], peers: Sequence[str]) -> list[Summary]:
    """All rows, the dense ones, and each family, against the fastest peer; the first two against each peer, too."""
    dense = [row for row in rows if row.layer.dense]
    groups = [("all", rows), ("dense, >= 32 channels", dense)]
    against = [(f"{title}, against {peer}", some, peer) for title, some in groups for peer in peers]
    fastest = [(f"{title}, against the fastest", some, None) for title, some in groups]
    families = [
        (f"  {family}", [row for row in rows if row.layer.family == family], None)
        for family in sorted({row.layer.family for row in rows})
    ]
    found = [summarise(*group) for group in [*fastest, *(against if len(peers) > 1 else []), *families]]
    if set(peers) - set(OURS):
        found += [summarise(f"all, {own} against the fastest", rows, None, own) for own in peers if own in OURS]
    return [summary for summary in found if summary is not None]
