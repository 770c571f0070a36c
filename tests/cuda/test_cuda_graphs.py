"""CUDA graphs: what a capture does not allow is refused in words before it breaks the capture."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda_fakes import FakeCupy, FakeDriver, FakeLibrary, FakeTorch, GpuArray, TorchTensor, driver_of, fake_gpu
from problems import data
from tvm_conv3d import conv3d
from tvm_conv3d.engine.cuda.image import Launch
from tvm_conv3d.runtime import gpu_backend, interchange
from tvm_conv3d.runtime.cuda.driver import Arguments, CudaError
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec

SPEC = Conv3DSpec(1, (3, 4, 5), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    monkeypatch.setattr(gpu_backend, "_of_graphs", {})
    with fake_gpu(monkeypatch) as fake:
        yield fake


@pytest.mark.parametrize(("kind", "stream"), [(TorchTensor, FakeTorch.STREAM), (GpuArray, FakeCupy.STREAM)])
def test_a_first_call_in_a_capture_is_refused(gpu: FakeDriver, kind: type[GpuArray], stream: int) -> None:
    executor, (x, kernel, bias) = Executor(), data(SPEC)
    source, weights = interchange.wrap(kind(gpu, x)), Weights(kernel, bias, 0)
    gpu.captured.add(stream)
    before = set(gpu.memory)
    with pytest.raises(RuntimeError, match=r"graph is being captured.*Call once before the capture, with the same"):
        executor.convolve(SPEC, source, weights)
    assert set(gpu.memory) == before and not gpu.launched and not gpu.waited
    gpu.captured.clear()
    expected = executor.convolve(SPEC, source, weights).array
    gpu.captured.add(stream)
    gpu.launched.clear()
    np.testing.assert_array_equal(executor.convolve(SPEC, source, weights).array, expected)
    assert gpu.launched == [(0, stream)]
    # other weights would have to be packed, another shape's code to be loaded
    gpu.launched.clear()
    with pytest.raises(RuntimeError, match="graph is being captured"):
        executor.convolve(SPEC, source, Weights(kernel, bias, 1))
    larger = replace(SPEC, batch=2)
    with pytest.raises(RuntimeError, match="graph is being captured"):
        executor.convolve(larger, interchange.wrap(kind(gpu, np.concatenate([x, x]))), weights)
    assert not gpu.launched


def test_what_a_graph_reads_is_not_freed(gpu: FakeDriver) -> None:
    """A replay after new weights, or without the layer, reads what was captured."""
    executor, (x, kernel, bias) = Executor(), data(SPEC)
    source = interchange.wrap(TorchTensor(gpu, x))
    executor.convolve(SPEC, source, Weights(kernel, bias, 0))
    packed = set(gpu.memory)
    executor.convolve(SPEC, source, Weights(kernel, bias, 1))
    assert not packed <= set(gpu.memory)
    packed = {memory.address for form in executor._packed.values() for memory in form.form.values()}
    gpu.captured.add(FakeTorch.STREAM)
    executor.convolve(SPEC, source, Weights(kernel, bias, 1))
    gpu.captured.clear()
    executor.convolve(SPEC, source, Weights(kernel, bias, 2))
    del executor
    gc.collect()
    assert packed <= set(gpu.memory)


def test_a_residual_operand_from_elsewhere_is_refused(gpu: FakeDriver) -> None:
    spec = replace(SPEC, post_ops=("add",))
    executor, (x, kernel, bias) = Executor(), data(spec)
    residual = np.zeros(spec.output_shape, np.float32)
    source, weights = interchange.wrap(TorchTensor(gpu, x)), Weights(kernel, bias, 0)
    executor.convolve(spec, source, weights, interchange.wrap(residual))
    gpu.captured.add(FakeTorch.STREAM)
    uploads = gpu.uploads
    with pytest.raises(RuntimeError, match="`residual` would be copied to the GPU"):
        executor.convolve(spec, source, weights, interchange.wrap(residual))
    assert gpu.uploads == uploads
    executor.convolve(spec, source, weights, interchange.wrap(TorchTensor(gpu, residual)))


def test_weights_of_the_function_are_not_copied_to_the_cpu(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    gpu.captured.add(FakeCupy.STREAM)
    with pytest.raises(RuntimeError, match="captured, and a tensor of the GPU's would be copied to the CPU's memory"):
        conv3d(GpuArray(gpu, x), GpuArray(gpu, kernel), bias, padding=1)
    assert not gpu.waited


class Capturing(FakeLibrary):
    """Says of each stream what its capture is."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def __getattr__(self, name: str) -> Any:
        return self.answer if name == "cuStreamIsCapturing" else super().__getattr__(name)

    def answer(self, stream: Any, found: Any) -> int:
        self.called.append("cuStreamIsCapturing")
        found._obj.value = self.status
        return 0


@pytest.mark.parametrize(("status", "told"), [(0, False), (1, True), (2, False)])
def test_the_driver_tells_captures(status: int, told: bool) -> None:
    library = Capturing(status)
    driver = driver_of(library)
    assert driver.is_capturing(0, 5) is told
    assert library.called[-3:] == ["cuCtxPushCurrent_v2", "cuStreamIsCapturing", "cuCtxPopCurrent_v2"]
    library.called.clear()
    assert not driver.is_capturing(0, 0)
    assert not library.called


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (716, "not aligned; the process can't use the GPU any more"),
        (719, "failed while it ran; the process can't use the GPU any more"),
        (900, "does not allow this; call once, with the same shapes and weights, before the capture"),
        (901, "ended by an earlier error"),
        *((status, "captur") for status in range(902, 909)),
    ],
)
def test_errors_of_kernels_and_captures_are_told(status: int, words: str) -> None:
    driver = driver_of(FakeLibrary(cuLaunchKernel=status))
    with pytest.raises(CudaError, match=rf"cuLaunchKernel fails with error {status}: .*{words}"):
        driver.launch(0, {"k": None}, Arguments([Launch("k", (1, 1, 1), (1, 1, 1), 0, ())]), 0)
