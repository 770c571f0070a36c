"""Plans and machine code made before they are needed, by several processes: within one, Python's lock lets one work.

Run as a module, this is such a process: each line of its input is "plan" and a spec's key, "compile", the key and
maybe a limit of bytes, or "helper" and a request for code that no plan describes; it answers each by a line. TVM's
compiler is loaded there, not by the process that calls.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tvm_conv3d.engine.bounded import are_kept, candidates, plan_within
from tvm_conv3d.runtime import helper_code, threads
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.runtime.loader import at_hand, get_loaded, get_packing
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target import answers
from tvm_conv3d.target.cpu import available_cpus
from tvm_conv3d.target.description import Target

#: Specs below which a process, which imports TVM in a second, is not worth starting.
_MIN_SPECS = 4


#: A problem, and the bytes that its packed weights may take, None for any number.
Bounded = tuple[Conv3DSpec, int | None]


class Compilers:
    """Processes that make plans and machine code for calls on this CPU; a context manager, which ends them.

    They start when there is enough to do. What they can't make is left to the call, which says why. Code that no plan
    describes, and that calls within the context ask for, is theirs, too (:func:`helper_code.compiled_by`).
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._helpers = helper_code.compiled_by(self._have_helper_made)

    def __enter__(self) -> Compilers:
        self._helpers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._helpers.__exit__(*error)
        for process in self._processes:
            # of one that has died nobody reads the rest
            with contextlib.suppress(OSError), process:
                pass

    def plan(self, specs: Iterable[Conv3DSpec]) -> None:
        """Makes :func:`tvm_conv3d.engine.bounded.candidates`, where they are not kept on disk already."""
        given = [spec for spec in dict.fromkeys(specs) if not spec.empty]
        if answers.are_at_hand():
            target = requested_target(None, threads.get_num_threads())
            given = [spec for spec in given if not are_kept(spec, target)]
        self._have_done([f"plan {spec.key()}" for spec in given])

    def compile(self, calls: Iterable[Bounded], progress: Callable[[int, int], None] | None = None) -> None:
        """Compiles what calls will need, unless it is in the cache already.

        Args:
            calls: the problems, of weights without structure, and the bounds of these.
            progress: is told how many of how many are done, from the start on; by one thread at a time.
        """
        target = requested_target(None, threads.get_num_threads())
        missing = [call for call in dict.fromkeys(calls) if not call[0].empty and not _is_at_hand(call, target)]
        lines = [f"compile {spec.key()} {'' if limit is None else limit}" for spec, limit in missing]
        self._have_done(lines, progress)

    def _have_helper_made(self, request: helper_code.Request) -> None:
        self._divide([f"helper {base64.b64encode(pickle.dumps(request)).decode()}"], 1)

    def _have_done(self, lines: Sequence[str], progress: Callable[[int, int], None] | None = None) -> None:
        count = min(available_cpus(), len(lines))
        if count >= 2 and len(lines) >= _MIN_SPECS:
            self._divide(lines, count, progress)

    def _divide(self, lines: Sequence[str], count: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Has lines done by so many processes."""
        if not sys.executable:
            return
        left, done, lock = iter(lines), [0], threading.Lock()

        def tell(finished: int) -> None:
            done[0] += finished
            if progress is not None:
                progress(done[0], len(lines))

        def work(process: subprocess.Popen[str]) -> None:
            for _ in _answers(process, left, lock):
                with lock:
                    tell(1)

        tell(0)
        workers = [threading.Thread(target=work, args=(process,)) for process in self._running(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _running(self, count: int) -> list[subprocess.Popen[str]]:
        """As many processes, or fewer where the system has no more."""
        running = [process for process in self._processes if process.poll() is None]
        command = [sys.executable, "-m", __name__, str(threads.get_num_threads())]
        pipe = subprocess.PIPE
        with contextlib.suppress(OSError):
            while len(running) < count:
                started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
                self._processes.append(started)
                running.append(started)
        return running[:count]


def _is_at_hand(call: Bounded, target: Target) -> bool:
    """Whether nothing is to be compiled for a call, be it that nothing can be."""
    spec, limit = call
    with contextlib.suppress(ValueError):
        return at_hand(plan_within(spec, target, limit), target)
    return True


def _answers(process: subprocess.Popen[str], left: Iterator[str], lock: threading.Lock) -> Iterator[str]:
    """Has a process do one line after the other; ends where that dies."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        while True:
            with lock:
                line = next(left, None)
            if line is None:
                break
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                break
            yield answer


def _serve(count: int) -> None:
    threads.set_num_threads(count)
    target = requested_target(None, count)
    for line in sys.stdin:
        with contextlib.suppress(ValueError, RuntimeError, MemoryError):
            _do(*line.split(), target=target)
        print("done", flush=True)


def _do(task: str, about: str, limit: str | None = None, *, target: Target) -> None:
    if task == "helper":
        helper_code.get(*pickle.loads(base64.b64decode(about)))
        return
    spec = Conv3DSpec.parse(about)
    if task == "plan":
        candidates(spec, target)
    else:
        plan = plan_within(spec, target, None if limit is None else int(limit))
        get_packing(get_loaded(plan, target), plan, target)


if __name__ == "__main__":
    # TVM imports it where it is installed, which takes longer than all that is TVM's, and compiling has no use for it
    sys.modules["torch"] = None  # type: ignore[assignment]
    _serve(int(sys.argv[1]))
