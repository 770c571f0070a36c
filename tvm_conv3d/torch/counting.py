"""How many operators were computed by this package, and how many by torch's own code, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_conv3d.support import process
from tvm_conv3d.support.tally import Tally


@dataclass(frozen=True)
class Counters:
    """Convolutions of this process's modules so far, and other operators of this package's.

    Attributes:
        ours: computed by this package.
        torch: computed by torch's own code, or refused by it; by reason. What torch.compile or torch.export leave to
            torch counts once a graph.
    """

    ours: int = 0
    torch: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.ours} operators by tvm_conv3d, {sum(self.torch.values())} by torch's own code"]
        return "\n".join((*lines, *(f"  {count} by torch: {reason}" for reason, count in self.torch.items())))


TALLY = process.keep("torch: operators by this package and by torch's own code", Tally())

#: One more by this package, and one more by torch's own code.
count_ours, count_torch = TALLY.count_ours, TALLY.count_theirs


def counters() -> Counters:
    """What was counted since the process began, or since :func:`reset_counters`."""
    return Counters(*TALLY.read())


def reset_counters() -> None:
    """Counts from zero again."""
    TALLY.reset()
