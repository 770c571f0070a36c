"""Compiled modules on disk, found again by every process of the user.

One folder a module, named by its key: `module.o`, `meta.json` (what the functions take, their digest, the plan in
words) and `schedule.py`, the readable schedule. A folder appears whole, by renaming a staged one. What does not check
out is never loaded: it is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

from tvm_conv3d.compute.shared.argument import Function
from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.support import process
from tvm_conv3d.support.folders import CACHE_VARIABLE, cache_root, is_private, private_folder

#: Seconds to wait for another process that compiles the same module, before compiling it as well.
_PATIENCE = 60.0

_OBJECT, _META, _SCHEDULE = "module.o", "meta.json", "schedule.py"


def load(key: str, root: Path | None = None) -> Artifact | None:
    """The artifact under `key`, or None where there is none or it is damaged or not ours.

    Args:
        key: of the artifact.
        root: the folder of all that is kept; None is :func:`tvm_conv3d.support.folders.cache_root`.
    """
    folder = _modules(root) / key
    try:
        if not is_private(folder.parent):
            return None
        meta = json.loads((folder / _META).read_text())
        code = (folder / _OBJECT).read_bytes()
        described = meta["code"]
        if meta["key"] != key or meta["sha256"] != _digest(code, described):
            return None
        functions = {name: Function.from_json(values) for name, values in described["functions"].items()}
        return Artifact(code, functions, "", Workspace.from_json(described["workspace"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def holds(key: str) -> bool:
    """Whether something is kept under `key`; it may be damaged still."""
    return (_modules() / key / _META).exists()


def workspace(key: str) -> Workspace | None:
    """What the intermediates of what is kept under `key` take; None where unknown."""
    try:
        return Workspace.from_json(json.loads((_modules() / key / _META).read_text())["code"]["workspace"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def store(key: str, artifact: Artifact, about: dict[str, object], root: Path | None = None) -> None:
    """Keeps `artifact` under `key`; warns once a process where that is impossible, and goes on.

    Args:
        key: of the artifact.
        artifact: what to keep.
        about: what it is, for people (spec, plan, target).
        root: the folder of all that is kept; None is :func:`tvm_conv3d.support.folders.cache_root`.
    """
    described = {
        "functions": {name: function.to_json() for name, function in artifact.functions.items()},
        "workspace": artifact.workspace.to_json(),
    }
    meta = {"key": key, "sha256": _digest(artifact.object_code, described), "code": described, "about": about}
    try:
        modules = private_folder(_modules(root))
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=modules))
        try:
            (staging / _OBJECT).write_bytes(artifact.object_code)
            (staging / _SCHEDULE).write_text(artifact.schedule)
            (staging / _META).write_text(json.dumps(meta, indent=1))
            _replace_folder(staging, modules / key)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        _warn_once(error, root)


@contextlib.contextmanager
def compiling(key: str) -> Iterator[None]:
    """Lets one process at a time compile `key`; does without where locks don't work or take too long."""
    lock = None
    with contextlib.suppress(OSError, filelock.Timeout):
        folder = private_folder(_modules())
        candidate = filelock.FileLock(folder / f".{key}.lock", timeout=_PATIENCE, thread_local=False)
        candidate.acquire()
        lock = candidate
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()


def _digest(code: bytes, described: object) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + b"\0" + code).hexdigest()


def _modules(root: Path | None = None) -> Path:
    return (root or cache_root()) / "modules"


def _replace_folder(staging: Path, folder: Path) -> None:
    """Renames `staging` to `folder`, moving a damaged one out of the way."""
    try:
        staging.rename(folder)
    except OSError:
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        try:
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old / "module")
            staging.rename(folder)
        finally:
            shutil.rmtree(old, ignore_errors=True)


_warned: set[Path | None] = process.keep("cache: folders that were warned of", set())


def _warn_once(error: OSError, root: Path | None) -> None:
    if root not in _warned:
        _warned.add(root)
        warnings.warn(
            f"Compiled convolutions can't be kept in {_modules(root)} and are compiled anew in every process: {error}. "
            f"Set {CACHE_VARIABLE} to a folder of your own.",
            RuntimeWarning,
            stacklevel=2,
        )
