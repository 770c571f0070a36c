"""Code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

#: Numbers of threads that a parent's environment may hold.
VARIABLES = ("TVM_NUM_THREADS", "OMP_NUM_THREADS")


def run(code: str, **environment: str) -> str:
    """What a process of this code prints."""
    inherited = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
