"""The measurement: every library checked, then timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvm_conv3d.bench.client import Client, WorkerError
from tvm_conv3d.bench.rows import Row, Timing
from tvm_conv3d.reference import problem
from tvm_conv3d.reference.layers import Layer

#: Between two turns, for the last one's idle threads to fall asleep.
PAUSE = 0.02
#: A mode whose single call takes longer than this is timed in the first round only, by one call.
SLOW = 5.0
#: A mode this many times slower than its library's best in the first round gets no second one.
HOPELESS = 2.0


@dataclass(frozen=True)
class Effort:
    """How long to measure: turns of each library, and the least seconds of a turn."""

    rounds: int = 5
    min_time: float = 0.2
    pause: float = PAUSE


@dataclass
class Lane:
    """A library on one layer while it is measured: seconds of a call while checking, and the least ever, by mode."""

    client: Client
    timing: Timing
    calls: dict[str, float]
    least: dict[str, float] = field(default_factory=dict)


class Comparison:
    """Runs layers through our process and the peers' processes."""

    def __init__(
        self, ours: Client, peers: Sequence[Client], effort: Effort, modes: dict[str, list[str]] | None = None
    ) -> None:
        self._ours, self._peers, self._effort, self._modes = ours, list(peers), effort, modes or {}

    def versions(self, say: Callable[[str], None]) -> dict[str, str]:
        """Every library's versions; drops and names the peers that are not available.

        Raises:
            WorkerError: ours is not available.
        """
        versions: dict[str, str] = dict(self._ours.ask("hello")["versions"])
        for client in list(self._peers):
            try:
                versions.update(client.ask("hello")["versions"])
            except WorkerError as error:
                self._peers.remove(client)
                say(f"{client.name} is not available and its column stays empty. {error}")
        return versions

    def run(self, layer: Layer) -> Row:
        """Checks and times one layer."""
        with problem.scratch() as folder:
            data = problem.make(layer.spec, Path(folder))
            lanes = [self._checked(client, data) for client in (self._ours, *self._peers)]
        # what the libraries did to get ready still disturbs the first turns: none of these counts
        for lane in lanes:
            self._round(lane, 0)
            lane.timing.modes.clear()
            lane.least.clear()
        for turn in range(self._effort.rounds):
            for lane in lanes:
                self._round(lane, turn)
                _drop_slow(lane)
        for lane in lanes:
            _settle(lane.timing)
            self._free(lane.client)
        return Row(layer, lanes[0].timing, {lane.client.name: lane.timing for lane in lanes[1:]})

    def _checked(self, client: Client, data: problem.Problem) -> Lane:
        """Builds the layer in one library and keeps the modes whose numbers are right."""
        lane = Lane(client, Timing(), {})
        try:
            answer = client.ask(
                "prepare", key=data.spec.key(), folder=str(data.folder), only=self._modes.get(client.name)
            )
        except WorkerError as error:
            lane.timing.notes["build"] = str(error)
            return lane
        errors: dict[str, float] = {}
        for mode, found in answer["modes"].items():
            if "error" in found:
                lane.timing.notes[mode] = found["error"]
                continue
            errors[mode] = data.error(Path(found["result"]))
            if errors[mode] > problem.TOLERANCE[data.spec.dtype]:
                lane.timing.notes[mode] = f"WRONG, relative error {errors[mode]:.2g}: not timed"
                continue
            lane.calls[mode] = found["call_s"]
            lane.timing.origin = lane.timing.origin or found["origin"]
            lane.timing.first_call = lane.timing.first_call or found["first_s"]
        right = [errors[mode] for mode in lane.calls]
        lane.timing.wrong = bool(errors) and not right
        lane.timing.error = max(right or errors.values(), default=None)
        return lane

    def _round(self, lane: Lane, turn: int) -> None:
        for mode in list(lane.calls):
            self._turn(lane, mode, turn)

    def _turn(self, lane: Lane, mode: str, turn: int) -> None:
        slow = lane.calls[mode] > SLOW
        if slow and turn:
            return
        time.sleep(self._effort.pause)
        try:
            answer = lane.client.ask(
                "time", mode=mode, min_time=self._effort.min_time, most_calls=1 if slow else 100_000
            )
        except WorkerError as error:
            lane.timing.notes["time"] = str(error)
            # Its process is gone, and with it all modes of this layer.
            lane.calls.clear()
            lane.timing.modes.clear()
            return
        lane.timing.modes.setdefault(mode, []).append(answer["median"])
        lane.least[mode] = min(answer["least"], lane.least.get(mode, answer["least"]))

    def _free(self, client: Client) -> None:
        try:
            client.ask("drop")
        except WorkerError:
            client.close()


def _drop_slow(lane: Lane) -> None:
    """Modes far behind their library's best need no further turns."""
    best = min(lane.least.values(), default=0.0)
    for mode in list(lane.calls):
        if lane.least.get(mode, 0.0) > HOPELESS * best:
            del lane.calls[mode]


def _settle(timing: Timing) -> None:
    """The best mode's time is the library's."""
    if timing.modes:
        medians = {mode: statistics.median(turns) for mode, turns in timing.modes.items()}
        timing.mode = min(medians, key=lambda mode: medians[mode])
        timing.seconds = medians[timing.mode]
