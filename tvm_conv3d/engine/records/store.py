"""Files of records: `<folder>/<target key>/records.jsonl`, sorted, one record a line.

A file is only ever replaced whole, by renaming a finished one: a full disk or a killed process leaves the old one.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from tvm_conv3d.engine.records.record import Key, Record, RecordError
from tvm_conv3d.support import process
from tvm_conv3d.support.locks import ForkSafeLock

FILE_NAME = "records.jsonl"

#: Seconds to wait for other writers.
PATIENCE = 30.0

#: Bad lines of a file that are named one by one; the others are counted.
_MAX_NAMED = 20


class RecordWarning(UserWarning):
    """A record that is not used, named by file and line."""


@dataclass(frozen=True)
class RecordFile:
    """A file's records.

    Attributes:
        path: the file.
        records: by spec key and threads.
        lines: number of each record's line, from 1.
        unread: the lines that hold no record, as they are.
    """

    path: Path
    records: Mapping[Key, Record]
    lines: Mapping[Key, int]
    unread: tuple[str, ...] = ()


_Signature = tuple[int, int, int]
_files: dict[Path, tuple[_Signature | None, RecordFile]] = process.keep("records: files that were read", {})
_lock = ForkSafeLock()


def load(path: Path) -> RecordFile:
    """The records of a file, read anew only when the file has changed; an absent file holds none.

    Warns once for each state of the file of every line that holds no record.
    """
    signature = _signature(path)
    known = _files.get(path)
    if known is not None and known[0] == signature:
        return known[1]
    with _lock:
        known = _files.get(path)
        if known is None or known[0] != signature:
            held = RecordFile(path, {}, {}) if signature is None else _read(path)
            _files[path] = known = (signature, held)
    return known[1]


def merge(path: Path, new: Iterable[Record], *, replace: bool = False) -> None:
    """Adds records to a file and keeps the faster of two for the same key.

    Lines that hold no record stay, at the end: another version may read them.

    Args:
        path: of the file; folders are made.
        new: records to add.
        replace: the new ones are kept even where slower, as when both were measured side by side.

    Raises:
        OSError: the file can't be written, because the disk is full, say; then it is as it was.
        filelock.Timeout: others (it is an OSError, too) held the file for :data:`PATIENCE` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE):
        held = _read(path, quiet=True) if path.exists() else RecordFile(path, {}, {})
        records = dict(held.records)
        for record in new:
            present = records.get(record.key)
            if replace or present is None or record.seconds < present.seconds:
                records[record.key] = record
        text = [records[key].line() for key in sorted(records)]
        _write(path, "".join(f"{line}\n" for line in [*text, *held.unread]))


def _write(path: Path, text: str) -> None:
    """Replaces the file whole, or leaves it as it is."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _read(path: Path, quiet: bool = False) -> RecordFile:
    records: dict[Key, Record] = {}
    lines: dict[Key, int] = {}
    unread = []
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        if quiet:
            raise
        warnings.warn(f"{path} can't be read and no record in it is used: {error}", RecordWarning, stacklevel=2)
        return RecordFile(path, {}, {})
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = Record.parse(line)
        except RecordError as error:
            unread.append(line)
            if not quiet:
                _complain(path, number, len(unread), str(error))
            continue
        present = records.get(record.key)
        if present is None or record.seconds < present.seconds:
            records[record.key], lines[record.key] = record, number
    if len(unread) > _MAX_NAMED and not quiet:
        rest = len(unread) - _MAX_NAMED
        warnings.warn(f"{path}: {rest} more lines are skipped: they hold no records.", RecordWarning, stacklevel=2)
    return RecordFile(path, records, lines, tuple(unread))


def _complain(path: Path, line: int, count: int, reason: str) -> None:
    if count <= _MAX_NAMED:
        text = f"{path}, line {line} is skipped: {reason}. Tune the layer again, or remove the line."
        warnings.warn(text, RecordWarning, stacklevel=2)


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
