"""What was measured of one layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_conv3d.bench.layers import Layer


@dataclass
class Timing:
    """One library on one layer.

    Attributes:
        seconds: a call's time, of the best mode; None where it was not timed.
        error: relative error of the best mode, or the largest of all where none is right.
        wrong: the numbers are not those of the oracle.
        modes: mode -> median seconds of each turn.
        notes: mode -> why it was left out.
        origin: where the plan came from.
        first_call: seconds to build the layer and call it once.
    """

    seconds: float | None = None
    error: float | None = None
    wrong: bool = False
    mode: str = ""
    modes: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    first_call: float | None = None

    @property
    def spread(self) -> float:
        """The slowest turn over the fastest one, of the mode that counts."""
        turns = self.modes.get(self.mode, [])
        return max(turns) / min(turns) if turns else 1.0


@dataclass
class Row:
    """One layer: ours, and every peer by name."""

    layer: Layer
    ours: Timing
    peers: dict[str, Timing]

    def ratio(self, peer: str | None = None) -> float | None:
        """How many times faster than `peer`, or than the fastest one; None where either was not timed."""
        timings = [timing for name, timing in self.peers.items() if peer in (None, name)]
        times = [timing.seconds for timing in timings if timing.seconds is not None]
        if self.ours.seconds is None or not times:
            return None
        return min(times) / self.ours.seconds

    @property
    def fastest(self) -> str | None:
        """The name of the fastest peer."""
        timed = {name: timing.seconds for name, timing in self.peers.items() if timing.seconds is not None}
        return min(timed, key=lambda name: timed[name]) if timed else None

    @property
    def gflops(self) -> float | None:
        """Direct-convolution floating-point operations per nanosecond of ours."""
        return None if self.ours.seconds is None else self.layer.spec.gflop / self.ours.seconds

    def faults(self) -> list[str]:
        """What went wrong, a line each."""
        lines = []
        for name, timing in (("ours", self.ours), *self.peers.items()):
            lines += [f"{self.layer.name}: {name} {mode}: {note}" for mode, note in timing.notes.items()]
        return lines
