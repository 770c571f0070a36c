"""The process of one library: `worker PEER THREADS`, as :mod:`tvm_conv3d.bench.client` starts it.

It reads one JSON object a line from standard input and answers each with one line. Between two requests it blocks on
the pipe. It needs only NumPy and its library, so that a library may live in another environment than this package's.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from tvm_conv3d.bench import peers
from tvm_conv3d.reference.problem import values_at
from tvm_conv3d.spec import Conv3DSpec

Answer = dict[str, Any]


class Worker:
    """Answers the requests of :class:`tvm_conv3d.bench.client.Client`."""

    def __init__(self, name: str, threads: int) -> None:
        self._peer = peers.load(name)(threads)
        self._ready: dict[str, peers.Prepared] = {}

    def hello(self) -> Answer:
        """Which versions answer here."""
        return {"versions": self._peer.versions()}

    def prepare(self, key: str, folder: str, only: list[str] | None = None) -> Answer:
        """Builds a layer in every mode of the library, runs it once, and stores what came out at the positions."""
        spec, where = Conv3DSpec.parse(key), Path(folder)
        x, kernel, bias, positions = (np.load(where / f"{name}.npy") for name in ("x", "kernel", "bias", "positions"))
        self.drop()
        answers = {}
        for mode in self._peer.modes(spec):
            if only and mode not in only:
                continue
            try:
                answers[mode] = self._first(spec, mode, (x, kernel, bias if spec.bias else None), positions, where)
            except Exception as error:  # the other modes may work
                answers[mode] = {"error": _short(error)}
        return {"modes": answers}

    def time(self, mode: str, min_time: float, most_calls: int = 100_000) -> Answer:
        """The median time of the calls made in `min_time` seconds: three at least, `most_calls` at most."""
        ready, clock = self._ready[mode], time.perf_counter
        seconds: list[float] = []
        began = clock()
        if most_calls > 1:
            ready.run()  # wakes the threads up and brings the data back into the caches
        while len(seconds) < most_calls and (len(seconds) < 3 or clock() - began < min_time):
            ready.before()
            before = clock()
            ready.run()
            seconds.append(clock() - before)
        return {"median": statistics.median(seconds), "least": min(seconds), "calls": len(seconds)}

    def drop(self) -> Answer:
        """Frees the layer's buffers."""
        self._ready.clear()
        gc.collect()
        return {}

    def _first(
        self,
        spec: Conv3DSpec,
        mode: str,
        data: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        positions: np.ndarray,
        where: Path,
    ) -> Answer:
        before = time.perf_counter()
        prepared = self._peer.prepare(spec, mode, *data)
        raw = prepared.run()
        first = time.perf_counter() - before
        values = values_at(prepared.to_numpy(raw), positions, spec.data_format)
        del raw
        result = where / f"{os.getpid()}_{mode}.npy"
        np.save(result, values.astype(np.float64))
        before = time.perf_counter()
        prepared.run()
        call = time.perf_counter() - before
        self._ready[mode] = prepared
        return {"result": str(result), "first_s": first, "call_s": call, "origin": prepared.origin}


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    # Libraries print to standard output; the answers go through a copy of it that they do not know.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _confine(threads)
    gc.disable()
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(name, threads)
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _short(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _confine(threads: int) -> None:
    """Keeps a library that has no thread setting on as many CPUs as the others."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        if threads < len(cpus):
            os.sched_setaffinity(0, cpus[:threads])


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main()
