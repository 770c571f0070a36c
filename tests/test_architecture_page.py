"""docs/architecture.md says what the code says; it and the glossary name files that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "draw_architecture.py"
PAGE = ROOT / "docs" / "architecture.md"


def check(page: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--check", "--page", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_is_what_the_code_says() -> None:
    found = check(PAGE)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    schedules --> compute\n", ""),
        ("    engine --> schedules\n", "    engine --> schedules\n    compute --> schedules\n"),
        ("| `tvm_conv3d/compute/` | Mathematics", "| `tvm_conv3d/compute/` | Loops"),
    ],
)
def test_a_stale_page_is_told(before: str, after: str, tmp_path: Path) -> None:
    text = PAGE.read_text()
    assert text.count(before) == 1
    stale = tmp_path / "page.md"
    stale.write_text(text.replace(before, after))
    found = check(stale)
    assert found.returncode == 1
    assert before.strip() in found.stdout
    assert "Run: python scripts/draw_architecture.py" in found.stdout


def test_a_page_without_a_marker_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace("<!-- end: table of the rooms -->", ""))
    found = check(page)
    assert found.returncode == 1
    assert "<!-- end: table of the rooms -->" in found.stderr


@pytest.mark.parametrize("name", ["architecture.md", "glossary.md"])
def test_files_that_a_page_names_exist(name: str) -> None:
    named = set(re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?)`", (ROOT / "docs" / name).read_text()))
    assert len(named) > 10
    missing = [path for path in named if not any((folder / path).exists() for folder in (ROOT, ROOT / "tvm_conv3d"))]
    assert not missing, f"docs/{name} names what does not exist: {sorted(missing)}"
