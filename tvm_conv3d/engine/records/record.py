"""One tuning record and the line of text that holds it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tvm_conv3d.spec import Conv3DSpec

#: Of the lines; others are not read.
FORMAT = 1

Key = tuple[str, int]


class RecordError(ValueError):
    """A line that holds no record that this version understands; the text says why."""


@dataclass(frozen=True)
class Record:
    """The fastest plan that was measured for one spec on one kind of machine with one number of threads.

    Attributes:
        spec: the spec's key.
        threads: of the measurement; plans for other numbers differ.
        algorithm: name of the algorithm.
        variant: fields of the algorithm's variant.
        decisions: every decision of the design space, by name.
        seconds: of one call of the kernel, median.
        default_seconds: the same of the plan that is taken where nothing was tuned.
        isa: the instruction set, see :func:`tvm_conv3d.target.resolve.instruction_set`.
        cpu: the processor's name, for people.
        date: of the measurement, YYYY-MM-DD.
        versions: of TVM and of this package. Decisions go by name, so that records outlive both; whether one still fits
            is found out when it is used.
    """

    spec: str
    threads: int
    algorithm: str
    variant: Mapping[str, Any] = field(hash=False)
    decisions: Mapping[str, int] = field(hash=False)
    seconds: float
    default_seconds: float
    isa: str
    cpu: str
    date: str
    versions: Mapping[str, str] = field(hash=False)

    @property
    def key(self) -> Key:
        """What a record is found by."""
        return self.spec, self.threads

    def line(self) -> str:
        """The record as one line of JSON without the line's end; equal for equal records."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["decisions"] = dict(self.decisions)
        values["variant"] = dict(self.variant)
        values["versions"] = dict(sorted(self.versions.items()))
        for name in ("seconds", "default_seconds"):
            values[name] = float(f"{values[name]:.4g}")
        return json.dumps({**values, "format": FORMAT}, ensure_ascii=False)

    @classmethod
    def parse(cls, line: str) -> Record:
        """The inverse of :meth:`line`.

        Raises:
            RecordError: the line is no record, of another format, or a value is of the wrong type.
        """
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"it is no JSON ({error})") from error
        if not isinstance(values, dict):
            raise RecordError("it is no JSON object")
        found = values.pop("format", None)
        if found != FORMAT:
            raise RecordError(f"its format is {found!r}, and this version reads {FORMAT}")
        if values.keys() != _CHECKS.keys():
            missing, unknown = sorted(_CHECKS.keys() - values.keys()), sorted(values.keys() - _CHECKS.keys())
            raise RecordError(f"it lacks {missing or 'nothing'} and has unknown {unknown or 'nothing'}")
        for name, (allowed, check) in _CHECKS.items():
            if not check(values[name]):
                raise RecordError(f"its {name} must be {allowed}, not {str(values[name])[:80]!r}")
        return cls(**values)


def _text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _date(value: object) -> bool:
    try:
        datetime.date.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _spec_key(value: object) -> bool:
    try:
        return isinstance(value, str) and Conv3DSpec.parse(value).key() == value
    except ValueError:
        return False


def _scalar(value: object) -> bool:
    return isinstance(value, (bool, int, str)) or (isinstance(value, list) and all(map(_scalar, value)))


def _mapping(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


#: Of each field: what it may be, in words and as a check.
_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "spec": ("a spec's key", _spec_key),
    "threads": ("an integer of at least 1", _count),
    "algorithm": ("a text", _text),
    "variant": ("an object of integers, texts, truths and lists of these", _mapping(_scalar)),
    "decisions": ("an object of integers of at least 1", _mapping(_count)),
    "seconds": ("a finite number above 0", _seconds),
    "default_seconds": ("a finite number above 0", _seconds),
    "isa": ("a text", _text),
    "cpu": ("a text", _text),
    "date": ("a date YYYY-MM-DD", _date),
    "versions": ("an object of texts", _mapping(_text)),
}
