"""What a call does on the host: nothing twice that is known, and no more of the driver than launches need."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuda_fakes import FakeDriver, FakeLibrary, GpuArray, TorchTensor, driver_of, fake_gpu
from cuda_on_cpu.compile import gxx
from problems import data
from tvm_conv3d.engine.cuda.image import Image, Launch, Launches
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.cuda import arrays
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.kernels import Kernels, LoadedImage
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec

SPEC = Conv3DSpec(1, (3, 4, 5), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


def function(monkeypatch: pytest.MonkeyPatch, library: Any) -> Kernels:
    """Three kernels, of which each reads what the one before it has left."""
    names = (("x", "first"), ("first", "kernel", "second"), ("second", "out"))
    launches = tuple(Launch(f"k{i}", (i + 1, 2, 3), (4, 5, 6), 7, each) for i, each in enumerate(names))
    image = Image("sm_90", "", {"main": Launches(launches, {"first": 100, "second": 300})}, cubin=b"code")
    driver = driver_of(library)
    monkeypatch.setattr(drivers, "get", lambda: driver)
    monkeypatch.setattr(drivers, "check_runs_here", lambda traits, number: None)
    return LoadedImage(image).functions["main"]


def test_a_call_enters_the_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    kernels = function(monkeypatch, library)
    for _ in range(2):
        library.called.clear()
        kernels(0, 0, dict.fromkeys(("x", "kernel", "out"), 256) | kernels.workspaces(512))
    assert library.called == ["cuCtxPushCurrent_v2", *3 * ["cuLaunchKernel"], "cuCtxPopCurrent_v2"]


def test_buffers_between_kernels_share_a_block_and_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = function(monkeypatch, FakeLibrary())
    assert kernels.workspaces(1024) == {"first": 1024, "second": 1280}
    assert kernels.scratch == 768


class Waiting(FakeLibrary):
    """Launches wait for each other, and tell what they were given when all have begun."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(threads)
        self.launches: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return self.launch if name == "cuLaunchKernel" else super().__getattr__(name)

    def launch(self, kernel: Any, *given: Any) -> int:
        *extents, stream, pointers, _ = given
        self.barrier.wait(timeout=10)
        addresses = tuple(ctypes.c_uint64.from_address(pointer).value for pointer in pointers)
        self.barrier.wait(timeout=10)
        self.launches.append((stream.value, tuple(extents), addresses))
        return 0


def test_calls_of_several_threads_have_their_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Waiting(2)
    kernels = function(monkeypatch, library)

    def call(number: int) -> None:
        given = {"x": number, "kernel": number + 1, "out": number + 2}
        kernels(0, number, given | kernels.workspaces(number + 3))

    for _ in range(2):
        library.launches.clear()
        threads = [threading.Thread(target=call, args=(number,)) for number in (1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wanted = [
            (number, (i + 1, 2, 3, 4, 5, 6, 7), addresses)
            for number in (1000, 2000)
            for i, addresses in enumerate(
                ((number, number + 3), (number + 3, number + 1, number + 259), (number + 259, number + 2))
            )
        ]
        assert sorted(library.launches) == wanted


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with fake_gpu(monkeypatch) as fake:
        yield fake


def test_a_gpu_is_asked_once_what_it_is(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu, "device", lambda number: asked.append(number) or FakeDriver.device(gpu, number))
    executor, (x, kernel, bias) = Executor(), data(SPEC)
    for _ in range(2):
        executor.convolve(SPEC, interchange.wrap(TorchTensor(gpu, x)), Weights(kernel, bias, 0))
        first = len(asked)
        asked.clear()
    assert first == 0


@pytest.mark.parametrize("kind", [TorchTensor, GpuArray])
def test_torch_and_cupy_are_not_asked_by_dlpack(
    gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, kind: type[GpuArray]
) -> None:
    """Which makes streams wait for each other, an error in a capture."""

    def refuse(self: GpuArray, **_: Any) -> Any:
        raise BufferError("no stream is to be touched")

    monkeypatch.setattr(GpuArray, "__dlpack__", refuse)
    spec = replace(SPEC, post_ops=("add",))
    x, kernel, bias = data(spec)
    residual = np.random.default_rng(1).standard_normal(spec.output_shape).astype(np.float32)
    given = [interchange.wrap(kind(gpu, array)) for array in (x, residual)]
    result = Executor().convolve(spec, given[0], Weights(kernel, bias, 0), given[1])
    assert oracle.relative_error(result.array, oracle.convolve(SPEC, x, kernel, bias) + residual) < 2e-6


@pytest.mark.parametrize("offset", [0, 4])
def test_what_kernels_may_read_is_not_copied(gpu: FakeDriver, offset: int) -> None:
    """But where vectors of 16 bytes would not be aligned."""
    tensor = TorchTensor(gpu, data(SPEC)[0])
    tensor.address += offset
    found = arrays.look(tensor)
    assert found.fits("float32") == (offset == 0)
    assert not found.fits("float16")
    assert (arrays.prepared(found, "float32") is found) == (offset == 0)


def test_views_of_torch_are_looked_at_as_they_lie() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(240.0).reshape(2, 3, 4, 5, 2)
    view = whole.permute(0, 4, 1, 2, 3)[:, 1:, :, ::2]
    found = arrays.look(view)
    assert (found.shape, found.strides, found.address) == (tuple(view.shape), view.stride(), view.data_ptr())
    assert found.dtype == "float32" and not found.dense
    assert arrays.look(torch.ones(4, 1, 3)[:, ::2]).dense
    assert arrays.look(torch.ones(2, dtype=torch.bfloat16)).dtype == "bfloat16"


def test_what_stands_for_its_negative_is_made_plain() -> None:
    torch = pytest.importorskip("torch")
    negative = torch._neg_view(torch.arange(1.0, 9.0))
    found = arrays.look(negative)
    assert found.address != negative.data_ptr()
    torch.testing.assert_close(found.value, torch.arange(-1.0, -9.0, -1.0))


def test_a_torch_tensor_without_memory_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="no memory of its own"):
        arrays.look(torch.empty(3, device="meta"))
    assert arrays.look(torch.empty(0, 3)).shape == (0, 3)


def test_the_current_stream_of_torch(gpu: FakeDriver) -> None:
    """By the function that gives its number, where torch has that."""
    tensor = TorchTensor(gpu, np.zeros(4))
    assert arrays.library_of(tensor).stream(1) == sys.modules["torch"].STREAM + 1
    raw = SimpleNamespace(_cuda_getCurrentRawStream=lambda device: 10 + device)
    torch = type("Torch", (), {"_C": raw})()
    assert arrays._torch(torch).stream(2) == 12


@pytest.mark.skipif(gxx() is None, reason="needs g++")
def test_the_command_prints_costs() -> None:
    pytest.importorskip("torch")
    script = Path(__file__).parents[2] / "scripts" / "cuda_host_cost.py"
    command = [sys.executable, str(script), "--hollow", "--calls", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["tensor_gemm", "gemm", "winograd_gemm"]
    assert all(float(row[2]) > 0 for row in rows)
