"""What was measured of whole networks, and how it lies in a file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tvm_conv3d.bench.report import Setting
from tvm_conv3d.bench.stats import Summary

#: PyTorch's modes, the fastest of which is what ours are compared with: as they are, in `channels_last_3d`, and both by
#: its compiler with constant weights.
TORCH_MODES = ("eager", "eager_cl", "compile", "compile_cl")
#: This package's: `accelerate(module)`, and the backend of `torch.compile`.
OUR_MODES = ("accelerate", "compiled")
MODES = (*TORCH_MODES, *OUR_MODES)

#: Kinds of operators, in the order of tables. The last is what is no operator of these: Python, loops of compilers.
KINDS = (
    *("convolution", "transposed", "norm", "activation", "pool/upsample", "linear", "concatenation", "add", "copies"),
    "rest",
)


@dataclass
class Timing:
    """One mode of one network.

    Attributes:
        seconds: of a call, one for each round.
        error: relative error of the outputs (2-norm); None where there are no numbers to compare.
        first_call: seconds to prepare the module and to call it once.
        memory: peak resident bytes of a process that ran this mode alone; None where that was not measured.
        kinds: seconds of a call under the profiler, by kind of operator.
        note: why it was not timed, or its memory not measured.
        available: False where this installation does not have the mode.
    """

    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    first_call: float | None = None
    memory: int | None = None
    kinds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    available: bool = True

    @property
    def median(self) -> float | None:
        """Of the rounds; None where it was not timed."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class Network:
    """One network in all its modes.

    Attributes:
        name: of the benchmark's list.
        shape: of the input.
        date: when it was measured.
        reference: element type of PyTorch's eager run that the outputs were compared with.
        modes: mode -> what was measured, in the order of the run.
        cold: first calls found no caches on disk.
        note: why no mode ran.
        available: False where this installation does not have the network.
    """

    name: str
    shape: tuple[int, ...] = ()
    date: str = ""
    reference: str = ""
    modes: dict[str, Timing] = field(default_factory=dict)
    cold: bool = False
    note: str = ""
    available: bool = True

    def median(self, mode: str) -> float | None:
        """Seconds of a call; None where the mode was not timed."""
        return self.modes[mode].median if mode in self.modes else None

    def fastest(self, modes: Iterable[str]) -> str | None:
        """The mode with the least median; None where none was timed."""
        timed = {mode: seconds for mode in modes if (seconds := self.median(mode)) is not None}
        return min(timed, key=lambda mode: timed[mode]) if timed else None

    def ratio(self, mode: str | None = None) -> float | None:
        """PyTorch's fastest mode's time over that of one of ours; above 1, ours is faster.

        Args:
            mode: of ours; None takes the faster one.
        """
        theirs, mine = self.fastest(TORCH_MODES), mode or self.fastest(OUR_MODES)
        own = None if mine is None else self.median(mine)
        best = None if theirs is None else self.median(theirs)
        return None if own is None or best is None else best / own

    def failures(self) -> list[str]:
        """What of ours was not timed although it is there, a line each; of PyTorch's, nothing."""
        if self.note:
            return [f"{self.name}: {self.note}"] if self.available else []
        timings = {mode: self.modes[mode] for mode in OUR_MODES if mode in self.modes}
        return [f"{self.name}, {mode}: {t.note}" for mode, t in timings.items() if t.available and not t.seconds]


@dataclass
class Run:
    """All networks of a file.

    Attributes:
        setting: the machine, and versions of libraries.
        environment: variables that change how libraries run.
        commands: that made it.
        networks: name -> what was measured.
    """

    setting: Setting
    environment: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    networks: dict[str, Network] = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, object]:
        """What runs must have in common to stand in one table."""
        setting = self.setting
        return {
            "processor": setting.cpu,
            "threads": setting.threads,
            "CPUs": setting.cpus,
            "system": setting.system,
            "versions": setting.versions,
            "environment": self.environment,
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """What :meth:`write` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            content = json.loads(path.read_text())
            networks = {name: network_of(found) for name, found in content["networks"].items()}
            return cls(Setting(**content["setting"]), content["environment"], content["commands"], networks)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no file of this benchmark's --json: {type(error).__name__}: {error}") from None


def network_of(content: dict[str, Any]) -> Network:
    """A network of its fields in JSON."""
    modes = {mode: Timing(**fields) for mode, fields in content["modes"].items()}
    return Network(**{**content, "shape": tuple(content["shape"]), "modes": modes})


def closing(networks: Iterable[Network]) -> list[Summary]:
    """Geometric means and least ratios, of the faster of our modes and of each."""
    timed = list(networks)
    titles: Sequence[tuple[str, str | None]] = [
        ("the faster of ours, against torch's fastest mode", None),
        *((f"{mode}, against torch's fastest mode", mode) for mode in OUR_MODES),
    ]
    found = []
    for title, mode in titles:
        ratios = [(ratio, network.name) for network in timed if (ratio := network.ratio(mode)) is not None]
        if ratios:
            least, name = min(ratios)
            found.append(Summary(title, len(ratios), geometric_mean(ratio for ratio, _ in ratios), least, name))
    return found
