"""The roof of the roofline: what this machine's cores and memory reach in plain NumPy.

Run as a program in a process of its own, so that NumPy's own threads are set before it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

#: What tells the BLAS libraries how many threads to take.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

EDGE = 2048
COPY_BYTES = 1 << 28
REPEATS = 5


@dataclass(frozen=True)
class Roof:
    """GFLOP/s of a float32 matrix product, and GB/s read plus written by a copy."""

    gflops: float
    bandwidth: float


def measure(threads: int) -> Roof:
    """The roof with `threads` threads, measured in a fresh process."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-m", "tvm_conv3d.support.roofline", str(threads)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return Roof(**json.loads(done.stdout))


def _product() -> float:
    a, b = (np.random.default_rng(0).standard_normal((EDGE, EDGE), np.float32) for _ in range(2))
    return 2e-9 * EDGE**3 / _least(lambda: a @ b)


def _copy(threads: int) -> float:
    source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    parts = np.linspace(0, COPY_BYTES, threads + 1, dtype=int)
    pieces = [slice(*ends) for ends in pairwise(parts)]

    def one(piece: slice) -> None:
        target[piece] = source[piece]

    with ThreadPoolExecutor(threads) as pool:
        return 2e-9 * COPY_BYTES / _least(lambda: list(pool.map(one, pieces)))


def _least(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return min(times)


if __name__ == "__main__":
    print(json.dumps({"gflops": _product(), "bandwidth": _copy(int(sys.argv[1]))}))
