"""What was measured so far of one spec, on disk after every trial: a second run goes on where the first was stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.artifact import PINNED, source_hash
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.folders import cache_root
from tvm_conv3d.target.cpu import thread_count
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import target_key
from tvm_conv3d.tuning.measurement_host import Trial


def folder_of(target: Target, kind: str = "trials") -> Path:
    """Where trials of a kind lie for a target with its number of threads: by default the journals."""
    return cache_root() / kind / target_key(target) / f"threads{thread_count(target)}"


class Journal:
    """The trials of one spec on one target with one number of threads, in the order of measuring.

    It begins anew where the schedules' sources or the versions have changed since.

    Attributes:
        path: of the file.
        trials: by `Plan.describe()`.
    """

    def __init__(self, spec: Conv3DSpec, target: Target) -> None:
        head = {"spec": spec.key(), "target": target.text, "source": source_hash()}
        self._head = json.dumps({**head, "versions": PINNED}, sort_keys=True)
        name = sha256(f"{spec.key()} {target.text}".encode()).hexdigest()[:24]
        self.path: Path = folder_of(target) / f"{name}.jsonl"
        self.trials: dict[str, Trial] = {}
        self._spec, self._known = spec, algorithms(target.kind)
        self._pending: list[str] = []
        self._warned = False
        self._read()

    def add(self, trials: Iterable[Trial]) -> None:
        """Notes trials, in memory and on disk; warns once where the disk does not take them."""
        fresh = [trial for trial in trials if trial.plan.describe() not in self.trials]
        self.trials.update((trial.plan.describe(), trial) for trial in fresh)
        self._pending += [json.dumps({**_about(t), "seconds": t.seconds, "note": t.note}) for t in fresh]
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Trials can't be kept in {self.path}, and those that still can't at the end of this run are lost: "
                    f"{error}. Free some space.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _write(self) -> None:
        """Brings to disk what is not there yet; what a full disk did not take is tried again the next time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # another process may have begun the file since, or removed it
        begun = self._is_begun()
        with self.path.open("a" if begun else "w", encoding="utf-8") as file:
            # the line before may have been cut off
            file.write("\n" if begun and not self._ends_well() else "" if begun else f"{self._head}\n")
            file.write("".join(f"{line}\n" for line in self._pending))
        self._pending.clear()

    def _is_begun(self) -> bool:
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                return file.readline() == f"{self._head}\n"
        except OSError:
            return False

    def _ends_well(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _read(self) -> None:
        """Takes the file's trials where it is of this journal; a line that was cut off is left out."""
        try:
            head, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return
        for line in lines if head == self._head else ():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                trial = self._parse(json.loads(line))
                self.trials[trial.plan.describe()] = trial

    def _parse(self, values: dict[str, Any]) -> Trial:
        variant = self._known[values["algorithm"]].variant(values["variant"])
        plan = Plan(self._spec, values["algorithm"], variant, values["decisions"], origin="journal")
        seconds = values["seconds"]
        return Trial(plan, None if seconds is None else float(seconds), values["note"])


def _about(trial: Trial) -> dict[str, object]:
    plan: Plan = trial.plan
    return {"algorithm": plan.algorithm, "variant": asdict(plan.variant), "decisions": dict(plan.decisions)}
