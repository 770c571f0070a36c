"""What TVM answers about targets is remembered on disk, and never for another TVM or another CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tvm_conv3d.support import folders, notes
from tvm_conv3d.target import answers


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The questions that TVM was asked, in an empty cache."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    return []


@pytest.fixture
def ask(asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A question whose answer is the first argument; each call is one of a new process."""

    def echo(*arguments: str) -> str | None:
        asked.append(arguments)
        return arguments[0] if arguments else None

    remembered = answers._remembered(echo)

    def in_a_new_process(*arguments: str) -> str | None:
        monkeypatch.setattr(answers, "_answers", {})
        answers.identity.cache_clear()
        return remembered(*arguments)

    yield in_a_new_process
    answers.identity.cache_clear()


def test_a_question_is_asked_once(ask: Callable[..., Any], asked: list[tuple[str, ...]]) -> None:
    assert [ask("a"), ask("b"), ask("a"), ask(), ask()] == ["a", "b", "a", None, None]
    assert asked == [("a",), ("b",), ()]


CHANGES = {
    "version": ("metadata", "version", lambda _: "0.28"),
    "library": (None, "_libraries", lambda: [["libtvm_compiler.so", 1, 2]]),
    "cpu": (None, "_cpu", lambda: "flags: sse2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_machine_or_tvm_is_asked_anew(
    change: str, ask: Callable[..., Any], asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("a")
    module, name, value = CHANGES[change]
    monkeypatch.setattr(answers if module is None else getattr(answers, module), name, value)
    ask("a")
    ask("a")
    assert asked == [("a",), ("a",)]


def test_nothing_is_remembered_of_a_cpu_that_is_not_known(
    ask: Callable[..., Any], asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_cpu", lambda: None)
    assert [ask("a"), ask("a")] == ["a", "a"]
    assert len(asked) == 2


def _change_the_value(path: Path) -> None:
    path.write_text(path.read_text().replace('["a"]', '["b"]'))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another value": _change_the_value,
    "truncated": lambda path: path.write_text(path.read_text()[:-3]),
    "empty": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[]"),
    "no text": lambda path: path.write_bytes(b"\xff\x00"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "others may write": lambda path: path.parent.chmod(0o777),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_asked_anew(
    damage: str, ask: Callable[..., Any], asked: list[tuple[str, ...]], tmp_path: Path
) -> None:
    ask("a")
    (note,) = (tmp_path / "answers").glob("*.json")
    DAMAGE[damage](note)
    assert ask("a") == "a"
    assert len(asked) == 2


def test_a_cache_that_can_not_be_written_costs_questions_only(
    ask: Callable[..., Any], asked: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "file"))
    assert [ask("a"), ask("a")] == ["a", "a"]
    assert len(asked) == 2


def test_no_staged_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    notes.store("kind", "key", {"a": 1})
    notes.store("kind", "key", {"a": 2})
    assert notes.load("kind", "key") == {"a": 2}
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["key.json"]
