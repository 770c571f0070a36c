"""What things cost on a CPU: one table of cycles a microarchitecture, as data.

An algorithm tells how much of each named amount the busiest core does; the table has the cycles of one of each.
`scripts/fit_costs.py` fits tables to measurements and writes them: `tables/<microarchitecture>.json`, beside the
machine, the date and the command.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tvm_conv3d.target.cpu import CpuTraits

_FOLDER = Path(__file__).parent / "tables"

#: The table of CPUs with and without AVX-512 that nobody has measured yet.
_USUAL = {True: "znver4", False: "x86-64-v3"}


@dataclass(frozen=True)
class Table:
    """Cycles of one core, as measured on one machine.

    Attributes:
        microarchitecture: LLVM's name of it.
        machine, date, command: where, when and by what it was measured.
        cycles: algorithm -> amount -> cycles of one.
        note: what was changed by hand since, and why.
    """

    microarchitecture: str
    machine: str
    date: str
    command: str
    cycles: Mapping[str, Mapping[str, float]]
    note: str = ""

    def write(self) -> Path:
        """Replaces the table of its microarchitecture; returns the file."""
        path = _path(self.microarchitecture)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def table_of(traits: CpuTraits) -> Table:
    """The table of a CPU's microarchitecture, or of the nearest that was measured."""
    return _table(traits.microarchitecture, traits.vector_bits == 512)


@functools.cache
def _table(microarchitecture: str, avx512: bool) -> Table:
    path = _path(microarchitecture)
    if not microarchitecture or not path.is_file():
        path = _path(_USUAL[avx512])
    return Table(**json.loads(path.read_text(encoding="utf-8")))


def _path(microarchitecture: str) -> Path:
    return _FOLDER / f"{microarchitecture}.json"


def costs_of(traits: CpuTraits, algorithm: str) -> Mapping[str, float]:
    """Cycles of one of each of an algorithm's amounts."""
    return table_of(traits).cycles[algorithm]


def total(costs: Mapping[str, float], amounts: Mapping[str, float]) -> float:
    """Cycles of all amounts."""
    return sum(costs[name] * amount for name, amount in amounts.items())


def price(traits: CpuTraits, algorithm: str, amounts: Mapping[str, float]) -> float:
    """Cycles of the busiest core for an algorithm's amounts."""
    return total(costs_of(traits, algorithm), amounts)
