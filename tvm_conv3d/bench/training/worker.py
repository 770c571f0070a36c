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
from tvm_conv3d.bench.training.results import Measured, Timing

#: Gradients of float32 that are further off the framework's first mode than this, relative (2-norm), are no rounding.
#: TensorFlow's of the CT network are 1.1e-2 off those of float64 (ours 2.9e-3), and its two modes 2.1e-2 apart.
TOLERANCE = 2.5e-2

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
    """A network in all modes of its framework, in turns, gradients compared before."""
    result = Measured(task.network, task.framework, task.kind)
    tvm_conv3d.set_num_threads(task.threads)
    try:
        if task.framework.endswith("torch"):
            _settle_torch(task.threads)
        ways = import_module(WAYS[task.network])
        way_of = ways.prepare(task.kind, task.small)
    except ImportError as error:
        result.available, result.note = False, f"not available: {short(error)}"
        return result
    ready: dict[str, Any] = {}
    right: list[np.ndarray] = []
    for mode in ways.MODES:
        timing = result.modes[mode] = Timing()
        try:
            with limited(task.limit):
                way = way_of(mode)
                outcome = way.outcome()
                # the framework's own first mode is what the others are compared with
                right = right or outcome
                timing.error = error_of(outcome, right)
                if not timing.error <= TOLERANCE:
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
