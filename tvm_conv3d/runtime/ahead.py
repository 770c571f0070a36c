"""Machine code made before it is called, by several processes: within one, Python's lock lets one compile at a time.

Run as a module, this is such a process: it reads a spec's key, and maybe a limit of bytes, from each line of its input,
and answers each by a line.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from tvm_conv3d.engine.bounded import plan_within
from tvm_conv3d.runtime import threads
from tvm_conv3d.runtime.compatibility import requested_target
from tvm_conv3d.runtime.loader import at_hand, get_loaded, get_packing
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import available_cpus
from tvm_conv3d.target.description import Target

#: Specs below which a process, which imports TVM in a second, is not worth starting.
_MIN_SPECS = 4


#: A problem, and the bytes that its packed weights may take, None for any number.
Bounded = tuple[Conv3DSpec, int | None]


def compile_ahead(calls: Iterable[Bounded], progress: Callable[[int, int], None] | None = None) -> None:
    """Compiles what calls of these problems on this CPU will need, unless it is in the cache already.

    What can't be compiled is left to the call, which says why.

    Args:
        calls: the problems, of weights without structure, and the bounds of these.
        progress: is told how many of how many are done, from the start on; by one thread at a time.
    """
    target = requested_target(None, threads.get_num_threads())
    missing = [call for call in dict.fromkeys(calls) if not call[0].empty and not _is_at_hand(call, target)]
    count = min(available_cpus(), len(missing))
    if count < 2 or len(missing) < _MIN_SPECS or not sys.executable:
        return
    left, done, lock = iter(missing), [0], threading.Lock()

    def tell(finished: int) -> None:
        done[0] += finished
        if progress is not None:
            progress(done[0], len(missing))

    def work() -> None:
        for _ in _answers(left, lock):
            with lock:
                tell(1)

    tell(0)
    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _is_at_hand(call: Bounded, target: Target) -> bool:
    """Whether nothing is to be compiled for a call, be it that nothing can be."""
    spec, limit = call
    with contextlib.suppress(ValueError):
        return at_hand(plan_within(spec, target, limit), target)
    return True


def _answers(left: Iterator[Bounded], lock: threading.Lock) -> Iterator[str]:
    """Has a process of its own compile one call after the other; ends where that dies."""
    command = [sys.executable, "-m", __name__, str(threads.get_num_threads())]
    pipe = subprocess.PIPE
    with contextlib.suppress(OSError):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        with process:
            assert process.stdin is not None and process.stdout is not None
            while True:
                with lock:
                    call = next(left, None)
                if call is None:
                    break
                spec, limit = call
                process.stdin.write(f"{spec.key()} {'' if limit is None else limit}\n")
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
            key, *limit = line.split()
            plan = plan_within(Conv3DSpec.parse(key), target, int(limit[0]) if limit else None)
            get_packing(get_loaded(plan, target), plan, target)
        print("done", flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
