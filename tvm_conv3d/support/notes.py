"""Small values on disk, found again by every process of the user: a file of JSON each, named by its key.

Nothing depends on them: what is lost, damaged or not ours is found out anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_conv3d.support.folders import cache_root, is_private, private_folder


def key_of(identity: Mapping[str, object]) -> str:
    """Hash of `identity`, of JSON's types."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def load(kind: str, key: str) -> Any:
    """The value under `key`; None where there is none, or it is damaged or not ours.

    Args:
        kind: names the folder.
        key: of :func:`key_of`.
    """
    try:
        path = _path(kind, key)
        if not is_private(path.parent):
            return None
        note = json.loads(path.read_text())
        return note["value"] if note["sha256"] == _digest(key, note["value"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store(kind: str, key: str, value: Any) -> None:
    """Keeps a value of JSON's types under `key`; does nothing where that is impossible."""
    text = json.dumps({"sha256": _digest(key, value), "value": value})
    with contextlib.suppress(OSError, ValueError):
        path = _path(kind, key)
        number, name = tempfile.mkstemp(prefix=".staging-", dir=private_folder(path.parent))
        try:
            with os.fdopen(number, "w") as file:
                file.write(text)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def _path(kind: str, key: str) -> Path:
    return cache_root() / kind / f"{key}.json"


def _digest(key: str, value: Any) -> str:
    return key_of({"key": key, "value": value})
