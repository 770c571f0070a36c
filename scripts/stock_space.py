"""What MetaSchedule's stock design space finds beside ours, in the same time: `python scripts/stock_space.py`.

Each layer is searched with `post-order-apply` on a plain TE declaration, in this process, for a budget of seconds that
does not count TVM's import of its tensor intrinsics. Its best is then measured in turns with our default and our tuned
plan, after all numbers were checked. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule.database import MemoryDatabase, TuningRecord
from tvm.s_tir.meta_schedule.runner import RunnerResult

from tvm_conv3d.compute.shared.argument import OUT
from tvm_conv3d.engine.build import compile_plan
from tvm_conv3d.engine.planner import default_plan, make_plan
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.runtime import threads
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import available_cpus, host_target
from tvm_conv3d.tuning.measure import Bench, measure_interleaved, seconds_of

LAYERS = ("r3d18_l1", "c3dnet_conv1a", "r3d18_l2_down", "i3d_4f_b0_1x1x1", "x3dm_dw_54")
FAILED = 1e10


def declare(spec: Conv3DSpec) -> tvm.IRModule:
    """The convolution as anybody would write it in TE: channels_last, padded copy, sum, bias, relu."""
    x = te.placeholder(spec.input_shape, "float32", name="x")
    kernel = te.placeholder(spec.kernel_shape, "float32", name="kernel")
    bias = te.placeholder((spec.filters,), "float32", name="bias")
    (d0, d1), (h0, h1), (w0, w1) = spec.pads
    size = spec.size

    def padded_at(n: Any, d: Any, h: Any, w: Any, c: Any) -> Any:
        inside = tirx.all(d >= d0, d < d0 + size[0], h >= h0, h < h0 + size[1], w >= w0, w < w0 + size[2])
        return tirx.if_then_else(inside, x[n, d - d0, h - h0, w - w0, c], tirx.const(0, "float32"))

    extents = (size[0] + d0 + d1, size[1] + h0 + h1, size[2] + w0 + w1)
    padded = te.compute((spec.batch, *extents, spec.channels), padded_at, name="padded")
    taps = [te.reduce_axis((0, k), name=f"k{axis}") for axis, k in enumerate(spec.kernel)]
    channel = te.reduce_axis((0, spec.group_channels), name="c")

    def conv_at(n: Any, d: Any, h: Any, w: Any, f: Any) -> Any:
        at = [o * s + t * e for o, s, t, e in zip((d, h, w), spec.strides, taps, spec.dilation, strict=True)]
        group = f // spec.group_filters * spec.group_channels if spec.groups > 1 else 0
        return te.sum(padded[(n, *at, group + channel)] * kernel[(*taps, channel, f)], axis=[*taps, channel])

    conv = te.compute(spec.output_shape, conv_at, name="conv")
    zero = tirx.const(0, "float32")
    out = te.compute(spec.output_shape, lambda *i: tirx.max(conv(*i) + bias[i[4]], zero), name="out")
    return tvm.IRModule({"main": te.create_prim_func([x, kernel, bias, out])})


def search(spec: Conv3DSpec, bench: Bench, seconds: float) -> tuple[Callable[[], None], int]:
    """The fastest kernel that the stock space has shown after so many seconds, and the number of trials.

    Raises:
        RuntimeError: no candidate could be compiled and run.
    """
    target, module = host_target(threads.get_num_threads()), declare(spec)
    model = meta_schedule.cost_model.XGBModel(verbose_eval=10**6)
    context = meta_schedule.TuneContext(
        module, target=target.as_tvm(), space_generator="post-order-apply", search_strategy="evolutionary", rand_state=1
    )
    database = MemoryDatabase()
    workload = database.commit_workload(module)
    inputs = [_aligned(array) for array in bench.operands.values()]
    views = [tvm_ffi.from_dlpack(array) for array in (*inputs, bench.results[OUT])]
    best: tuple[float, Callable[[], None] | None] = (math.inf, None)
    trials, began = 0, time.monotonic()
    context.pre_tuning(10**6, 16, None, database, model)
    while time.monotonic() - began < seconds:
        candidates = list(context.generate_measure_candidates() or ())
        if not candidates:
            break
        results = []
        for candidate in candidates:
            cost = FAILED
            if time.monotonic() - began < seconds:
                trials += 1
                try:
                    kernel = _kernel(tvm.compile(candidate.sch.mod, target=target.as_tvm()), views)
                    cost = _seconds(kernel)
                    best = min(best, (cost, kernel), key=lambda pair: pair[0])
                except tvm.error.InternalError:
                    pass
            results.append(RunnerResult([cost], None))
            record = TuningRecord(candidate.sch.trace, workload, [cost], target.as_tvm(), candidate.args_info)
            database.commit_tuning_record(record)
        context.notify_runner_results(candidates, results)
        model.update(context, candidates, results)
    if best[1] is None:
        raise RuntimeError(f"The stock space found nothing for {spec.key()} in {seconds:g} s.")
    return best[1], trials


def _aligned(array: Any) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as plain TE's code takes for granted."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _kernel(library: Any, views: list[Any]) -> Callable[[], None]:
    function = library["main"]
    return lambda: function(*views)


def _seconds(kernel: Callable[[], None]) -> float:
    """The least of some calls, which take a twentieth of a second or three calls."""
    times: list[float] = []

    def loop() -> None:
        kernel()
        while len(times) < 3 or sum(times) < 0.05:
            began = time.perf_counter()
            kernel()
            times.append(time.perf_counter() - began)

    threads.run(loop)
    return min(times)


def _ours(spec: Conv3DSpec, bench: Bench) -> list[Callable[[], None]]:
    """Our default and tuned kernels."""
    target = host_target(threads.get_num_threads())
    plans = (default_plan(spec, target), make_plan(spec, target))
    return [bench.kernel_of(plan, compile_plan(plan, target)) for plan in plans]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layers", type=Path, default=Path(__file__).with_name("layers.csv"), metavar="FILE.csv")
    options.add_argument("--names", default=",".join(LAYERS), metavar="A,B", help="layers of the file")
    options.add_argument("--seconds", type=float, default=30.0, help="of search for each layer")
    given = options.parse_args()
    threads.set_num_threads(available_cpus())
    import tvm.s_tir.tensor_intrin  # noqa: F401  (25 s, which are not counted)

    print("| layer | stock ms | trials | default ms | tuned ms | stock / tuned |\n|---|---|---|---|---|---|")
    wanted = given.names.split(",")
    for layer in (layer for layer in read_csv(given.layers) if layer.name in wanted):
        bench = Bench.of(layer.spec)
        stock, trials = search(layer.spec, bench, given.seconds)
        calls = [stock, *_ours(layer.spec, bench)]
        for call in calls:
            bench.results[OUT].fill(np.nan)
            threads.run(call)
            error = bench.error_of(bench.results)
            if not error < 1e-5:
                raise SystemExit(f"{layer.name}: wrong numbers, relative error {error:.2g}")
        stock_s, default_s, tuned_s = measure_interleaved([functools.partial(seconds_of, call) for call in calls])
        times = f"{1e3 * stock_s:.3f} | {trials} | {1e3 * default_s:.3f} | {1e3 * tuned_s:.3f}"
        print(f"| {layer.name} | {times} | {stock_s / tuned_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
