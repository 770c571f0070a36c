"""The checks in `checks/` on each of Keras's backends: a process has one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pages import run_code

# importing it here would ask for its default backend, which may be missing
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")

CHECKS = Path(__file__).parent / "checks"

#: What Keras's backends are made of.
LIBRARIES = {"torch": "torch", "tensorflow": "tensorflow", "jax": "jax"}

#: JAX has float64 in this mode only.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_ENABLE_X64": "1"}


@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize("check", sorted(path.stem for path in CHECKS.glob("check_*.py")))
def test_on_a_backend(check: str, backend: str) -> None:
    if find_spec(LIBRARIES[backend]) is None:
        pytest.skip(f"needs {LIBRARIES[backend]}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHECKS / f"{check}.py")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, env={**inherited, **ENVIRONMENT, "KERAS_BACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]


def test_the_page_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs, in the order of the page."""
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    run_code("keras.md", "Conv3D(", tmp_path)
