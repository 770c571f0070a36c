"""The process of one network and framework: `worker TASK RESULT`, as `bench.training.command` starts it.

TASK is JSON of :class:`Task`'s fields. What was found is written to the file RESULT.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import tvm_conv3d
from tvm_conv3d.bench.limits import limited, short
from tvm_conv3d.bench.training.results import OURS, Measured, Timing

#: Gradients of a framework's own modes that are further off those of float64 than this, relative (2-norm), are no
#: rounding: a maximum that rounding makes another cell's takes its gradient along.
TOLERANCE = 5e-2

#: Ours may be off by so many times as much as the framework's, and by so much in any case. How far gradients are off
#: is decided by the few zeros and maxima that rounding moves: of one network JAX's are 2e-5 off, PyTorch's 2e-3,
#: TensorFlow's 1e-2.
OF_THEIRS = 1.5
LEAST = {"step": 1e-2, "inference": 1e-3}

#: Steps before the first round: the second has this package's best plan compiled.
WARM_UP = 2

#: Seconds before a turn, for the last one's idle threads to fall asleep.
PAUSE = 0.02

#: Networks, and where what runs them is.
WAYS = {"basicunet": "tvm_conv3d.bench.training.torch_ways", "ct": "tvm_conv3d.bench.training.keras_ways"}


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        network, framework, kind: as of :class:`Measured`.
        rounds: turns of each mode.
        threads: of torch, which this package's own number follows.
        limit: seconds that a mode's preparation may take.
        small: a network for tests.
    """

    network: str
    framework: str
    kind: str
    rounds: int
    threads: int
    limit: float
    small: bool = False


def measure(task: Task) -> Measured:
    """A network in all modes of its framework, in turns, gradients compared with those of float64 before."""
    result = Measured(task.network, task.framework, task.kind)
    tvm_conv3d.set_num_threads(task.threads)
    try:
        if task.framework.endswith("torch"):
            _settle_torch(task.threads)
        ways = import_module(WAYS[task.network])
        network = ways.prepare(task.kind, task.small)
        right = network.exact()
    except ImportError as error:
        result.available, result.note = False, f"not available: {short(error)}"
        return result
    ready: dict[str, Any] = {}
    for mode in ways.MODES:
        timing = result.modes[mode] = Timing()
        try:
            with limited(task.limit):
                way = network.way(mode)
                allowed = allowed_error(result, mode)
                timing.error = error_of(way.outcome(), right)
                if not timing.error <= allowed:
                    timing.note = f"WRONG, relative error {timing.error:.2g}: not timed"
                    timing.error = timing.error if math.isfinite(timing.error) else None
                    continue
                for _ in range(WARM_UP):
                    way.run()
        except Exception as failure:  # the other modes may work
            timing.note = short(failure)
            continue
        ready[mode] = way.run
    for _ in range(task.rounds):
        for mode, run in ready.items():
            result.modes[mode].seconds.append(_turn(run))
    return result


def allowed_error(found: Measured, mode: str) -> float:
    """Of a mode of ours, once those of the framework's own are known; else :data:`TOLERANCE`."""
    if not mode.startswith(OURS):
        return TOLERANCE
    theirs = [t.error for name, t in found.modes.items() if not name.startswith(OURS) and t.error and not t.note]
    return max(LEAST[found.kind], OF_THEIRS * max(theirs, default=0.0))


def error_of(found: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The relative error of all tensors together (2-norm); infinite where they can't be compared."""
    if [each.shape for each in found] != [each.shape for each in right]:
        return math.inf
    off = sum(float(np.square(f.astype(np.float64) - r).sum()) for f, r in zip(found, right, strict=True))
    whole = sum(float(np.square(r.astype(np.float64)).sum()) for r in right)
    error = math.sqrt(off / whole) if whole else math.inf
    return error if math.isfinite(error) else math.inf


def _settle_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # all modes' graphs of one function count together, which users have in processes of their own
    torch._dynamo.config.cache_size_limit = 64


def _turn(run: Any) -> float:
    time.sleep(PAUSE)
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def main() -> None:
    text, place = sys.argv[1:]
    Path(place).write_text(json.dumps(asdict(measure(Task(**json.loads(text)))), allow_nan=False))


if __name__ == "__main__":
    main()
