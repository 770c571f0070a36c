"""Warm processes that compile and measure, so that what crashes or hangs there costs only itself."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

#: Runs in the process: answers requests until the connection ends.
Serve = Callable[[Connection], None]

#: Seconds that a fresh process may take to import TVM.
_START = 120.0

_READY = "ready"


class WorkerError(RuntimeError):
    """A request without an answer: the process died, ran out of time, or says what went wrong.

    Args:
        text: what happened.
        killed: from outside, by hand or for want of memory: the request itself may be sound.
    """

    def __init__(self, text: str, killed: bool = False) -> None:
        super().__init__(text)
        self.killed = killed


class NoWorkerError(RuntimeError):
    """No process can be started, or no device reached: nothing can be compiled or measured any more."""


def answer_requests(connection: Connection, handle: Callable[[Any], Any]) -> None:
    """The loop of a process: answers each request with ("ok", result) or ("error", text) until the caller is gone."""
    # Ctrl-C goes to the whole group of processes; the first one decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(_READY)
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ("ok", handle(request))
        except NoWorkerError as error:
            answer = ("lost", str(error))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            answer = ("error", f"{type(error).__name__}: {lines[-1][:300]}")
        connection.send(answer)


class Worker:
    """One process, started at the first request and again after each that it did not survive.

    Args:
        serve: what the process runs; importable by name.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._process: Any = None
        self._connection: Connection | None = None
        self._deadline = 0.0
        self._fresh = False

    @property
    def connection(self) -> Connection:
        """The line to the process that has been asked something."""
        if self._connection is None:
            raise WorkerError("the process was not asked anything")
        return self._connection

    @property
    def time_left(self) -> float:
        """Seconds until the present request has run out of time."""
        return max(0.0, self._deadline - time.monotonic())

    def ask(self, request: Any, timeout: float) -> Any:
        """The answer to `request`.

        Raises:
            WorkerError: there is none after `timeout` seconds, the process died, or it reports an error.
            NoWorkerError: no process can be started.
        """
        self.send(request, timeout)
        return self.receive()

    def send(self, request: Any, timeout: float) -> None:
        """Sends a request, to be followed by :meth:`receive`; the time to start a process is not counted.

        Raises:
            WorkerError: the process died before it could be asked.
            NoWorkerError: no process can be started, not even at the second attempt.
        """
        if not self._ready():
            self.close()
            if not self._ready():
                code = self._exit_code()
                self.close()
                raise NoWorkerError(f"A process that compiles or measures does not start ({code}).")
        try:
            self.connection.send(request)
        except OSError as error:
            self.close()
            raise WorkerError(f"the process can't be asked: {error}", killed=True) from error
        self._deadline = time.monotonic() + timeout

    def _ready(self) -> bool:
        """Whether there is a process that has started."""
        self.start()
        try:
            if self._fresh and (not self.connection.poll(_START) or self.connection.recv() != _READY):
                return False
        except (EOFError, OSError):
            return False
        self._fresh = False
        return True

    def receive(self) -> Any:
        """The answer to what was sent; see :meth:`ask`."""
        try:
            if not self.connection.poll(self.time_left):
                self.close()
                raise WorkerError("out of time")
            status, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self.close()
            raise WorkerError(f"the process died ({code})", killed=code == signal.SIGKILL.name) from error
        except KeyboardInterrupt:
            # the answer that is still to come must not be taken for the next request's
            self.close()
            raise
        if status == "lost":
            raise NoWorkerError(answer)
        if status == "error":
            raise WorkerError(answer)
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def start(self) -> None:
        """Starts the process where there is none, and does not wait for it."""
        if self._process is not None and self._process.is_alive():
            return
        self.close()
        # not fork: TVM's thread pools and locks do not survive it
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self._serve, args=(theirs,), daemon=True)
        try:
            process.start()
        except OSError as error:
            raise NoWorkerError(f"A process that compiles or measures can't be started: {error}") from error
        self._process = process
        theirs.close()
        self._connection, self._fresh = ours, True

    def _exit_code(self) -> str:
        if self._process is None:
            return "unknown"
        self._process.join(1)
        code = self._process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


def ask_all(workers: Sequence[Worker], requests: Sequence[Any], timeout: float) -> list[Any]:
    """The answers to `requests`, spread over `workers`; a WorkerError in the place of each that has none.

    Args:
        workers: at least one.
        requests: any number.
        timeout: seconds for each request.

    Raises:
        NoWorkerError: a process can't be started.
    """
    answers: list[Any] = [None] * len(requests)
    try:
        _spread(workers, requests, timeout, answers)
    except BaseException:
        # answers that are still to come must not be taken for the next requests'
        for worker in workers:
            worker.close()
        raise
    return answers


def _spread(workers: Sequence[Worker], requests: Sequence[Any], timeout: float, answers: list[Any]) -> None:
    for worker in workers[: len(requests)]:
        worker.start()
    waiting = list(enumerate(requests))[::-1]
    busy: dict[int, int] = {}
    while waiting or busy:
        for number, worker in enumerate(workers):
            if number not in busy and waiting:
                index, request = waiting.pop()
                try:
                    worker.send(request, timeout)
                    busy[number] = index
                except WorkerError as error:
                    answers[index] = error
        if not busy:
            continue
        connections = {number: workers[number].connection for number in busy}
        ready = wait(list(connections.values()), min(workers[number].time_left for number in busy))
        for number, connection in connections.items():
            if connection in ready or workers[number].time_left == 0:
                try:
                    answers[busy[number]] = workers[number].receive()
                except WorkerError as error:
                    answers[busy[number]] = error
                del busy[number]
