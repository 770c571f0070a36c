"""The tuner's clock on a GPU: many launches between two events, and buffers that have left the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cuda_checks import default_plans
from cuda_fakes import FakeDriver, FakeLibrary, driver_of
from problems import data
from tvm_conv3d.engine import build
from tvm_conv3d.engine.cuda.image import Launch
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import loader, packing
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.driver import Arguments, CudaError
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning import measure
from tvm_conv3d.tuning.gpu_kernel import GpuKernel

SPEC = Conv3DSpec(1, (3, 4, 5), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

LAUNCHES = (Launch("a", (1, 1, 1), (32, 1, 1), 0, ("x",)), Launch("b", (1, 1, 1), (32, 1, 1), 0, ("out",)))


class Events(FakeLibrary):
    """Has events, between which three milliseconds pass."""

    def __getattr__(self, name: str) -> Any:
        def function(*given: Any) -> int:
            self.called.append(name)
            if name == "cuEventCreate":
                given[0]._obj.value = len(self.called)
            if name == "cuEventElapsedTime":
                given[0]._obj.value = 3.0
            return self.statuses.get(name, 0)

        return function


def elapsed(library: FakeLibrary) -> float:
    arguments = Arguments(LAUNCHES)
    arguments.fill({"x": 256, "out": 512})
    return driver_of(library).elapsed(0, {"a": None, "b": None}, 3 * [arguments])


def test_launches_lie_between_two_events() -> None:
    library = Events()
    assert elapsed(library) == pytest.approx(3e-3)
    assert library.called[-16:] == [
        "cuCtxPushCurrent_v2",
        *2 * ["cuEventCreate"],
        "cuEventRecord",
        *6 * ["cuLaunchKernel"],
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime",
        *2 * ["cuEventDestroy_v2"],
        "cuCtxPopCurrent_v2",
    ]


@pytest.mark.parametrize(("function", "left"), [("cuEventCreate", 1), ("cuLaunchKernel", 2), ("cuEventSynchronize", 2)])
def test_what_fails_leaves_no_event_behind(function: str, left: int) -> None:
    library = Events(**{function: 719})
    with pytest.raises(CudaError, match="719"):
        elapsed(library)
    assert library.called.count("cuEventDestroy_v2") == left
    assert library.called[-1] == "cuCtxPopCurrent_v2"


class Noting(FakeDriver):
    """Notes the addresses that timed calls are given, and runs none."""

    def elapsed(self, number: int, kernels: Mapping[str, Any], calls: Sequence[Arguments]) -> float:
        self.seen = [
            tuple(ctypes.c_uint64.from_address(p).value for queued in arguments.queued for p in queued.arguments)
            for arguments in calls
        ]
        return 0.5 * len(calls)


@pytest.mark.parametrize(("caches", "sets"), [(0.0, 1), (0.5, 2), (1.0, 3), (1000.0, 48)])
def test_calls_take_turns_with_buffers_that_outgrow_the_cache(
    monkeypatch: pytest.MonkeyPatch, caches: float, sets: int
) -> None:
    x, kernel, bias = data(SPEC)
    out = np.zeros(SPEC.output_shape, x.dtype)
    gpu = Noting(cache=int(caches * (x.nbytes + out.nbytes)))
    monkeypatch.setattr(drivers, "get", lambda: gpu)
    (plan,) = default_plans([SPEC])
    loaded = loader.link(build.compile_plan(plan, resolve("cuda:sm_80", 1)))
    call = GpuKernel.of(loaded, {"x": x, "out": out}, packing.stored(SPEC, kernel, bias))
    count = 2 * sets + 1
    assert call.seconds(count) == pytest.approx(0.5)
    assert len(gpu.seen) == count and len(set(gpu.seen)) == sets
    assert gpu.seen[:sets] == gpu.seen[sets : 2 * sets] and gpu.seen[-1] == gpu.seen[0]
    shared = set.intersection(*map(set, gpu.seen))
    if sets > 1:
        # weights are of all sets, input and output of one each
        assert all(len(set(seen) - shared) == 2 for seen in gpu.seen)
        for seen in gpu.seen:
            blocks = [gpu.memory[address].tobytes() for address in set(seen) - shared]
            assert x.tobytes() in blocks
    # what timing has left there is not taken for a result
    call()
    call.fetch({"out": out})
    assert oracle.relative_error(out, oracle.convolve(SPEC, x, kernel, bias)) < 2e-6


def test_outputs_that_no_kernel_writes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeDriver()
    monkeypatch.setattr(drivers, "get", lambda: gpu)
    (plan,) = default_plans([SPEC])
    pair = (plan, build.compile_plan(plan, resolve("cuda:sm_80", 1)))
    bench = measure.Bench.of(SPEC)
    bench.results["out"][:] = 0
    kernel = bench.kernel_of(*pair)
    monkeypatch.setattr(gpu, "launch", lambda *_: None)
    assert bench.error(kernel) == np.inf


def test_a_sample_lasts_milliseconds() -> None:
    """So that kernels of microseconds are ranked by their time, not by the clock's noise."""
    counts: list[int] = []

    def clock(count: int) -> float:
        counts.append(count)
        return 4e-6

    measure.measure_interleaved([clock])
    assert counts[0] == 1 and all(count * 4e-6 >= 1e-3 for count in counts[1:])
