"""Folders that a user names, or that are the user's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

#: Names the root of all that this package keeps.
CACHE_VARIABLE = "TVM_CONV3D_CACHE"


def expand(path: str | Path, name: str) -> Path:
    """`path` with `~` and `~user` as the home folders they stand for.

    Args:
        path: as the user wrote it.
        name: of the variable or argument, for the error.

    Raises:
        ValueError: there is no such user, or none is known for this process.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{name} names a home folder that this system does not know. Received: {str(path)!r}. "
            "Write the whole path, from / on."
        ) from None


def user_cache() -> Path:
    """Where this package keeps what can be made again."""
    return _absolute(platformdirs.user_cache_dir("tvm_conv3d", appauthor=False))


def user_data() -> Path:
    """Where this package keeps what took the user's time."""
    return _absolute(platformdirs.user_data_dir("tvm_conv3d", appauthor=False))


def cache_root() -> Path:
    """The folder of everything that is kept: $TVM_CONV3D_CACHE, else the user's cache folder.

    Raises:
        ValueError: the variable names the home of a user that does not exist.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    return expand(chosen, CACHE_VARIABLE) if chosen else user_cache()


def private_folder(path: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        OSError: it can't be made, or is not the user's own.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(path):
        raise PermissionError(f"{path} belongs to another user or others may write to it")
    return path


def is_private(path: Path) -> bool:
    """Whether nobody else can place files here; what lies there is trusted, machine code among it.

    Raises:
        OSError: there is no such folder.
    """
    if not hasattr(os, "getuid"):
        return True
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@contextlib.contextmanager
def empty_root() -> Iterator[None]:
    """An empty folder in the place of :func:`cache_root`, for as long as the context lasts."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before


def _absolute(folder: str) -> Path:
    """A user without a home would otherwise get a folder named `~`, wherever the process runs."""
    path = Path(folder)
    return path if path.is_absolute() else Path(tempfile.gettempdir()) / "tvm_conv3d"
