"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fault:
    """One fault of a kernel; `count` is how often it was seen for this kind, kernel and buffer."""

    kind: str
    kernel: str
    buffer: str
    index: int  # in elements of the buffer; -1 if it does not apply
    block: tuple[int, int, int]
    thread: int  # linear in its block
    other_thread: int  # -1 if there is none
    detail: str
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.buffer}[{self.index}], " if self.buffer else ""
        other = f" and {self.other_thread}" if self.other_thread >= 0 else ""
        return f"{self.kind}: {self.kernel}: {where}block {self.block}, thread {self.thread}{other}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """Faults, in the order they were found, and the buffers after the run."""

    faults: tuple[Fault, ...]
    buffers: dict[str, Array]
    arrays: list[Array] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def kinds(self) -> set[str]:
        return {fault.kind for fault in self.faults}

    def check(self) -> None:
        """Raise AssertionError with all faults, if there are any."""
        if self.faults:
            raise AssertionError("\n".join(map(str, self.faults)))
