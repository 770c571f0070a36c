"""The process of one network: `worker measure|peak TASK RESULT`, as :mod:`tvm_conv3d.bench.networks.command` starts it.

TASK is JSON of :class:`Task`'s fields. What was found is written to the file RESULT: a network, or bytes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tvm_conv3d.bench.limits import limited, short
from tvm_conv3d.bench.networks import expected, modes, operators, zoo
from tvm_conv3d.bench.networks.results import OUR_MODES, TORCH_MODES, Network, Timing

#: A relative error beyond this is no rounding: the mode is not timed. torch's own modes stay below it.
TOLERANCE = 1e-3
#: Calls before the first round: the second has this package's best plan compiled, later ones find memory at hand.
WARM_UP = 3
#: Seconds before a turn, for the last one's idle threads to fall asleep.
PAUSE = 0.02
#: Graphs that torch's compiler may make of one function. All modes' count together, which users have in processes of
#: their own; beyond its usual 8 the rest would silently run uncompiled.
GRAPHS = 64
#: Calls under the profiler.
PROFILED = 3


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        network: its name.
        modes: of :data:`tvm_conv3d.bench.networks.results.MODES`.
        rounds: turns of each mode.
        threads: of torch, which this package's own number follows.
        limit: seconds that a mode's preparation and first call may take.
        profile: whether the fastest modes run under the profiler, too.
    """

    network: str
    modes: list[str]
    rounds: int
    threads: int
    limit: float
    profile: bool = False


def measure(task: Task) -> Network:
    """A network in all modes of a task, in turns, outputs checked before."""
    torch.set_num_threads(task.threads)
    torch._dynamo.config.cache_size_limit = GRAPHS
    result = Network(task.network)
    try:
        module, x = zoo.make(task.network)
    except Exception as error:  # a library that is missing, or that fits to another torch
        result.available, result.note = False, f"not available: {short(error)}"
        return result
    result.shape = tuple(x.shape)
    with torch.inference_mode():
        result.reference, right = expected.outputs(module, x)
        ready = {}
        for mode in task.modes:
            timing = result.modes[mode] = Timing()
            run = _checked(mode, (module, x), timing, right, task.limit)
            if run is not None:
                ready[mode] = run
        del right
        for _ in range(task.rounds):
            for mode, run in ready.items():
                result.modes[mode].seconds.append(_turn(run))
        if task.profile:
            # torch's compiler hides what its loops do: of the eager modes the faster, too
            chosen = (result.fastest(some) for some in (TORCH_MODES[:2], TORCH_MODES, OUR_MODES))
            for mode in filter(None, dict.fromkeys(chosen)):
                result.modes[mode].kinds = operators.by_kind(ready[mode], PROFILED)
    return result


def peak(task: Task) -> int:
    """The most bytes that this process had with the task's one mode in it.

    Raises:
        NotAvailableError: this installation does not have the mode.
    """
    torch.set_num_threads(task.threads)
    with torch.inference_mode(), limited(task.limit):
        prepared = modes.prepare(task.modes[0], *zoo.make(task.network))
        with prepared.first():
            prepared.run()
        for _ in range(WARM_UP):
            prepared.run()
    return expected.peak_bytes()


def _checked(
    mode: str, network: tuple[Any, Any], timing: Timing, right: list[torch.Tensor], limit: float
) -> Callable[[], Any] | None:
    """A mode that was prepared, called and found right; None where the timing's note says why not."""
    began = time.perf_counter()
    try:
        with limited(limit):
            prepared = modes.prepare(mode, *network)
            with prepared.first():
                found = prepared.run()
        timing.first_call = time.perf_counter() - began
        error = expected.error(found, right)
        for _ in range(WARM_UP - 1):
            found = None
            found = prepared.run()
        # a first call may compute otherwise than those that are timed
        error = max(error, expected.error(found, right), key=lambda each: math.inf if math.isnan(each) else each)
        del found
    except modes.NotAvailableError as failure:
        timing.available, timing.note = False, f"not available: {failure}"
        return None
    except Exception as failure:  # the other modes may work
        timing.note = short(failure)
        return None
    if not error <= TOLERANCE:
        timing.note = f"WRONG, relative error {error:.2g}: not timed"
        return None
    timing.error = error
    return prepared.run


def _turn(run: Callable[[], Any]) -> float:
    time.sleep(PAUSE)
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def main() -> None:
    do, text, place = sys.argv[1:]
    task = Task(**json.loads(text))
    answer: dict[str, Any]
    if do == "peak":
        try:
            answer = {"memory": peak(task)}
        except Exception as failure:  # told in the table
            answer = {"note": short(failure)}
    else:
        answer = asdict(measure(task))
    Path(place).write_text(json.dumps(answer, allow_nan=False))


if __name__ == "__main__":
    main()
