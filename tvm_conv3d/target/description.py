"""A target as a value, which needs no TVM: that is asked for its own only where code is generated."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm.target


@dataclass(frozen=True)
class Target:
    """What code is compiled for.

    Attributes:
        text: all that TVM exports of its target, as one line of JSON with sorted keys; equal for equal targets.
    """

    text: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Target:
        """The target with these options, which are all that TVM exports of it."""
        return cls(json.dumps(options, sort_keys=True))

    @classmethod
    def of_tvm(cls, target: tvm.target.Target) -> Target:
        """One of TVM's."""
        return cls.of(_plain(target.export()))

    @classmethod
    def of_scope(cls) -> Target:
        """The one in whose scope TVM works."""
        from tvm.target import Target as Tvm

        return cls.of_tvm(Tvm.current(False))

    def as_tvm(self) -> tvm.target.Target:
        """The same as TVM's compiler takes it."""
        return _made(self.text)

    @functools.cached_property
    def _options(self) -> Mapping[str, Any]:
        return json.loads(self.text)

    @property
    def kind(self) -> str:
        """Of TVM's kinds: "llvm" for CPUs, "cuda" for GPUs."""
        return str(self._options["kind"])

    @property
    def cpu(self) -> str:
        """LLVM's name of the processor, "" where it is of no certain one."""
        return str(self._options.get("mcpu", ""))

    @property
    def triple(self) -> str:
        """LLVM's triple, "" where it is this machine's."""
        return str(self._options.get("mtriple", ""))

    @property
    def attributes(self) -> tuple[str, ...]:
        """Features that are switched on and off, as LLVM writes them: "+avx2", "-avx512f"."""
        return tuple(map(str, self._options.get("mattr", ())))

    @property
    def cores(self) -> int | None:
        """Threads that plans are made for; None where the target does not say."""
        cores = self._options.get("num-cores")
        return None if cores is None else int(cores)

    @property
    def arch(self) -> str:
        """The GPU's architecture, such as "sm_90"; "" for a CPU."""
        return str(self._options.get("arch", ""))

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=64)
def _made(text: str) -> tvm.target.Target:
    from tvm.target import Target

    return Target(json.loads(text))


def _plain(value: Any) -> Any:
    """TVM's containers as JSON's."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    return [str(v) for v in value]
