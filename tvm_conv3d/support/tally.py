"""What was done here, and what was left to others and why: counted for users who want to be sure."""

from __future__ import annotations

from collections import Counter

from tvm_conv3d.support.locks import ForkSafeLock

#: Reasons that are told apart; what comes after them counts together, as reasons may name sizes.
_MAX_REASONS = 256
_OTHERS = "other reasons"


class Tally:
    """Counts from zero; several threads may use it."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._ours = 0
        self._theirs: Counter[str] = Counter()

    def count_ours(self) -> None:
        """One more was done here."""
        with self._lock:
            self._ours += 1

    def count_theirs(self, reason: str) -> None:
        """One more was left to others."""
        with self._lock:
            self._theirs[reason if reason in self._theirs or len(self._theirs) < _MAX_REASONS else _OTHERS] += 1

    def read(self) -> tuple[int, dict[str, int]]:
        """How many were done here, and by reason how many were left to others, the most usual reason first."""
        with self._lock:
            return self._ours, dict(self._theirs.most_common())

    def reset(self) -> None:
        """Counts from zero again."""
        with self._lock:
            self._ours = 0
            self._theirs.clear()
