"""How many convolutions of Keras's layers were computed by this package, and how many by Keras's backend, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_conv3d.keras.backends import BACKEND


@dataclass(frozen=True)
class Counters:
    """Convolutions of this process's layers so far.

    Attributes:
        ours: computed by this package, counted as they are computed, in compiled functions, too. On Keras's torch
            backend these are all operators that :func:`tvm_conv3d.torch.counters` counts.
        keras: computed by the backend's own code, or refused by it; by reason. What is left to it in functions that the
            backend traces counts once a trace.
    """

    ours: int = 0
    keras: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.ours} convolutions by tvm_conv3d, {sum(self.keras.values())} by Keras's backend"]
        return "\n".join((*lines, *(f"  {count} by Keras's backend: {reason}" for reason, count in self.keras.items())))


def counters() -> Counters:
    """What was counted since the process began, or since :func:`reset_counters`."""
    return Counters(*BACKEND.tally.read())


def reset_counters() -> None:
    """Counts from zero again."""
    BACKEND.tally.reset()
