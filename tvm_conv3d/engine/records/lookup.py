"""Where records lie, and in which order they are asked."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm_conv3d.schedules as schedules
from tvm_conv3d.engine.records.record import Key, Record
from tvm_conv3d.engine.records.store import FILE_NAME, RecordFile, RecordWarning, load
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import folders, process
from tvm_conv3d.target.cpu import thread_count
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import instruction_set, target_key

#: Names a folder of logs that is asked before the user's own.
LOGS_VARIABLE = "TVM_CONV3D_LOGS"

#: What that variable holds where no record shall be taken from anywhere.
NO_LOGS = "none"


@dataclass(frozen=True)
class Found:
    """A record and the place that holds it."""

    record: Record
    file: Path
    line: int

    def reject(self, reason: str) -> None:
        """Warns, once a process, that this record is not used."""
        _warn_once(f"{self.file}, line {self.line} is skipped: {reason}. Tune the layer again, or remove the line.")


def user_logs() -> Path:
    """The user's own folder of logs, into which the tuner writes.

    It lies with the user's data, not in the cache, as a cache may be deleted at any time and tuning takes long; where
    $TVM_CONV3D_CACHE names the root of all that is kept, it lies there.
    """
    if os.environ.get(folders.CACHE_VARIABLE):
        return folders.cache_root() / "tuning_logs"
    return folders.user_data() / "tuning_logs"


def packaged_logs() -> Path:
    """The folder of logs that came with this package: beside `schedules`, in a checkout as in a wheel."""
    return Path(str(schedules.__file__)).parents[1] / "tuning_logs"


def find(spec: Conv3DSpec, target: Target, logs: str | Path | None = None) -> Iterator[Found]:
    """The records that may serve `spec` on `target`, the first choice first.

    Asked are: `logs`, the folder in $TVM_CONV3D_LOGS, the user's folder, and the package's: the log of this very
    target, then those of targets with the same instruction set, by name the most alike first. With
    $TVM_CONV3D_LOGS=none only `logs` is asked.

    Args:
        spec: the problem.
        target: whose key names the log, and whose number of threads the record must have.
        logs: a folder of logs, or one file of records.

    Raises:
        ValueError: `logs` does not exist.
    """
    key = (spec.key(), thread_count(target))
    name = target_key(target)
    isa = instruction_set(target, spec.dtype)
    for path in _files(name, logs):
        yield from _in_file(load(path), key, isa)
    if os.environ.get(LOGS_VARIABLE) == NO_LOGS:
        return
    for path in _neighbours(name):
        yield from _in_file(load(path), key, isa, foreign=True)


def _files(name: str, logs: str | Path | None) -> Iterator[Path]:
    if logs is not None:
        given = folders.expand(logs, "`logs`")
        if not given.exists():
            raise ValueError(f"`logs` must be a folder of tuning logs or a file of records. Received: {logs!r}")
        yield given if given.is_file() else given / name / FILE_NAME
    chosen = os.environ.get(LOGS_VARIABLE)
    if chosen == NO_LOGS:
        return
    if chosen:
        folder = Path(os.path.expanduser(chosen))  # noqa: PTH111  (pathlib's raises for an unknown user)
        if not folder.is_dir():
            _warn_once(f"{LOGS_VARIABLE} names no folder, and no record is taken from there. Received: {chosen!r}")
        yield folder / name / FILE_NAME
    yield user_logs() / name / FILE_NAME
    yield packaged_logs() / name / FILE_NAME


def _neighbours(name: str) -> list[Path]:
    """The packaged logs of other targets, those with the longest common beginning of the name first."""

    def unlikeness(path: Path) -> tuple[int, str]:
        other = path.parent.name
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
        return -len(list(alike)), other

    others = [path for path in packaged_logs().glob(f"*/{FILE_NAME}") if path.parent.name != name]
    return sorted(others, key=unlikeness)


def _in_file(book: RecordFile, key: Key, isa: str, foreign: bool = False) -> Iterator[Found]:
    record = book.records.get(key)
    if record is None:
        return
    found = Found(record, book.path, book.lines[key])
    if record.isa == isa:
        yield found
    elif not foreign:
        found.reject(f"it was measured with instruction set {record.isa}, and this target has {isa}")


_warned: set[str] = process.keep("records: warnings that were given", set())


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, RecordWarning, stacklevel=3)
