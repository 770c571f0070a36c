"""A TVM RPC tracker and one device behind it, as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Tracked(NamedTuple):
    """The tracker's port, and the process group of the device behind it."""

    port: int
    device: int


@contextlib.contextmanager
def tracked(folder: Path, server: Sequence[str]) -> Iterator[Tracked]:
    """Both while they run; the device is of the key "board".

    Args:
        folder: in which both run.
        server: arguments of Python that start the device's server, but those that both kinds of servers have.
    """
    port, own = free_port(), free_port()
    common: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common |= {"start_new_session": True}
    host = ["--host", "127.0.0.1"]
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", *host, f"--port={port}", f"--port-end={port + 1}"]
    with subprocess.Popen(command, **common) as first:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        given = [sys.executable, *server, *host, f"--port={own}", f"--tracker=127.0.0.1:{port}", "--key=board"]
        with subprocess.Popen(given, **common) as second:
            try:
                yield Tracked(port, second.pid)
            finally:
                for process in (second, first):
                    _end(process)


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
