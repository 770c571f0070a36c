"""What the process keeps for all its callers: one list of it, and the one hook that renews it in forked children.

A module makes such state by :func:`keep`, where it uses it: so the list is whole, and how something is renewed stands
beside it. Importing a module makes its own empty tables and adds them to the list, nothing else: it starts no thread,
reads no file and loads no library.

A forked child has its parent's memory, but of the threads only the one that forked. What another thread may have been
in the midst of, and what is made of threads, is renewed there. Tables that are whole at any moment stay as they are,
with locks that are free (:mod:`tvm_conv3d.support.locks`), and so does what `functools.cache` remembers: facts of the
machine and loaded code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_kept: dict[str, Callable[[], object] | None] = {}


def keep(name: str, state: T, renew: Callable[[], object] | None = None) -> T:
    """Notes state of the process.

    Args:
        name: of no other state; "module: what it is".
        state: as its module begins with it.
        renew: makes it usable in a forked child; None where it is so without.

    Returns:
        `state`.
    """
    _kept[name] = renew
    return state


def kept() -> dict[str, bool]:
    """All that the process keeps by now, and whether it is renewed in forked children."""
    return {name: renew is not None for name, renew in _kept.items()}


def _in_forked_child() -> None:
    for renew in _kept.values():
        if renew is not None:
            renew()


# not everywhere can processes fork
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
