"""How many operators were computed by this package, and how many by torch's own code, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock

#: Reasons that are told apart; what comes after them counts together, as reasons may name sizes.
_MAX_REASONS = 256
_OTHERS = "other reasons"


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


_lock = ForkSafeLock()
_ours: Counter[None] = process.keep("torch: operators by this package", Counter())
_torch: Counter[str] = process.keep("torch: operators by torch's own code", Counter())


def counters() -> Counters:
    """What was counted since the process began, or since :func:`reset_counters`."""
    with _lock:
        return Counters(_ours[None], dict(_torch.most_common()))


def reset_counters() -> None:
    """Counts from zero again."""
    with _lock:
        _ours.clear()
        _torch.clear()


def count_ours() -> None:
    """One more by this package."""
    with _lock:
        _ours[None] += 1


def count_torch(reason: str) -> None:
    """One more by torch's own code."""
    with _lock:
        _torch[reason if reason in _torch or len(_torch) < _MAX_REASONS else _OTHERS] += 1
