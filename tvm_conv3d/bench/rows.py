"""What was measured of one layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_conv3d.reference.layers import Layer

#: Peers that are this package: they are compared, but not what it is measured by where there are others.
OURS = ("tvm_conv3d", "tuned", "default", "alone", "beside_torch")


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

    def ratio(self, peer: str | None = None, of: str | None = None) -> float | None:
        """How many times faster than `peer`, or than the fastest one; None where either was not timed.

        Args:
            peer: whose time is divided; None takes the fastest.
            of: by whose time; None takes ours.
        """
        name = peer or self.fastest
        time = None if name is None or name not in self.peers else self.peers[name].seconds
        own = self.ours.seconds if of is None else self.peers.get(of, Timing()).seconds
        return None if time is None or own is None else time / own

    @property
    def fastest(self) -> str | None:
        """The name of the fastest peer; another library's, where there is one."""
        timed = {name: timing.seconds for name, timing in self.peers.items() if timing.seconds is not None}
        others = {name: seconds for name, seconds in timed.items() if name not in OURS} or timed
        return min(others, key=lambda name: others[name]) if others else None

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
