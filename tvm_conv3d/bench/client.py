"""The other end of :mod:`tvm_conv3d.bench.worker`: starts a library's process and asks it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tvm_conv3d.bench.rows import OURS
from tvm_conv3d.support.roofline import THREAD_VARIABLES

#: Idle pools give the CPUs back within milliseconds. GNU OpenMP and TVM do so by themselves: told to sleep at once,
#: they take several times as long for a small layer, and the comparison would be unfair.
QUIET = {"KMP_BLOCKTIME": "5", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
#: Starts a worker without running this package's `__init__`: no TVM in another library's process or environment.
BARE = """
import runpy, sys, types
package = types.ModuleType("tvm_conv3d")
package.__path__ = [sys.argv.pop(1)]
sys.modules["tvm_conv3d"] = package
runpy.run_module("tvm_conv3d.bench.worker", run_name="__main__")
"""


class WorkerError(RuntimeError):
    """A library is not there, cannot compute a layer, crashed or took too long; the text says which."""


class Client:
    """One library's process, started at the first request and again after a crash."""

    def __init__(self, name: str, threads: int, python: str = sys.executable, timeout: float = 300.0) -> None:
        """
        Args:
            name: a name of :data:`tvm_conv3d.bench.peers.PEERS`, or `module:Class`.
            threads: how many the library may use.
            python: the interpreter, for a library that lives in another environment.
            timeout: seconds after which an unanswered process is ended.
        """
        self.name, self._threads, self._python, self._timeout = name, threads, python, timeout
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the client

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request of :class:`tvm_conv3d.bench.worker.Worker`.

        Raises:
            WorkerError: the worker answered with an error, ended or did not answer in time.
        """
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self._timeout)
        except queue.Empty:
            self.close()
            raise WorkerError(f"{self.name} did not answer within {self._timeout:.0f} s") from None
        except BrokenPipeError:
            line = None
        if line is None:
            code = process.wait()
            self.close()
            raise WorkerError(f"{self.name} ended with status {code}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [self._python, *self._program(), self.name, str(self._threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=self._environment(),
            )
            # A queue of its own: the reader of an ended process must not answer for the next.
            self._lines = queue.Queue()
            threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        return self._process

    def _program(self) -> list[str]:
        if self.name in OURS:
            return ["-m", "tvm_conv3d.bench.worker"]
        return ["-c", BARE, str(Path(__file__).resolve().parents[1])]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **QUIET, **dict.fromkeys(THREAD_VARIABLES, str(self._threads))}

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def _read(pipe: Any, lines: queue.Queue[str | None]) -> None:
    try:
        for line in pipe:
            lines.put(line)
    except ValueError:  # closed under us
        pass
    lines.put(None)
