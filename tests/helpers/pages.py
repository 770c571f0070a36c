"""The code of pages of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def run_code(page: str, expected: str, folder: Path) -> None:
    """Runs the Python code of a page, in the order of the page, in a process of its own.

    Args:
        page: the file's name in `docs/`.
        expected: what the code must hold, so that a page without any does not pass.
        folder: for the script.
    """
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
    assert expected in code
    script = folder / "page.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
