"""What can go wrong with a GPU is an error in words: never a crash, never a result of the CPU in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cuda_checks import default_plans
from cuda_fakes import FakeDriver, FakeJax, FakeLibrary, FakeTorch, GpuArray, JaxArray, TorchTensor, driver_of, fake_gpu
from problems import data
from tvm_conv3d import Conv3D
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.cuda.image import Image, Launch, Launches
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.driver import Arguments, CudaError
from tvm_conv3d.runtime.cuda.kernels import LoadedImage, Memory
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec
from tvm_conv3d.target.resolve import resolve

SPEC = Conv3DSpec(1, (3, 4, 5), 64, 64, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

TARGET = "cuda:sm_80"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with fake_gpu(monkeypatch) as fake:
        yield fake


def test_a_module_for_another_architecture_is_not_loaded(gpu: FakeDriver) -> None:
    """As an exported one is, whatever loads it."""
    launches = Launches((Launch("k", (1, 1, 1), (1, 1, 1), 0, ("x",)),))
    image = Image("sm_90", "no source that compiles", {"main": launches})
    with pytest.raises(ValueError, match=r"compute capability 8.0: it can't run code for sm_90"):
        LoadedImage(image).functions["main"](0, 0, {"x": Memory(0, 4).address})
    assert not gpu.launched


@pytest.mark.parametrize(
    ("function", "status", "words"),
    [
        ("cuLaunchKernel", 701, "more threads, registers or shared memory than the GPU gives a block"),
        ("cuLaunchKernel", 400, "belongs to another GPU"),
        ("cuLaunchKernel", 700, "read or wrote beyond its buffers"),
        ("cuModuleLoadData", 209, "another architecture"),
        ("cuModuleLoadData", 222, "newer than the driver"),
        ("cuModuleLoadData", 218, "damaged"),
        ("cuMemAlloc_v2", 2, "memory is full"),
        ("cuDevicePrimaryCtxRetain", 3, "spawn it instead"),
        ("cuStreamSynchronize", 12345, "unknown error"),
    ],
)
def test_what_the_driver_refuses_is_told(function: str, status: int, words: str) -> None:
    driver = driver_of(FakeLibrary(**{function: status}))
    launch = Launch("k", (1, 1, 1), (1, 1, 1), 0, ())
    image = Image("sm_80", "", {"main": Launches((launch,))}, cubin=b"code")

    def call() -> None:
        kernels = driver.load(0, image)
        driver.allocate(0, 4)
        driver.launch(0, kernels, Arguments([launch]), 0)
        driver.synchronize(0, 0)

    with pytest.raises(CudaError, match=rf"{function} fails with error {status}: .*{words}"):
        call()


def test_a_refused_call_leaves_no_context_behind() -> None:
    library = FakeLibrary(cuMemAlloc_v2=2)
    with pytest.raises(CudaError):
        driver_of(library).allocate(0, 4)
    assert library.called.count("cuCtxPushCurrent_v2") == library.called.count("cuCtxPopCurrent_v2") == 1


def test_weights_are_there_for_every_stream() -> None:
    """A copy may return before it ends, and other libraries' streams do not wait for the default one."""
    library = FakeLibrary()
    driver_of(library).upload(0, 0, np.zeros(4))
    assert library.called[-3:] == ["cuMemcpyHtoD_v2", "cuStreamSynchronize", "cuCtxPopCurrent_v2"]


def test_shared_memory_beyond_what_all_kernels_have_is_asked_for() -> None:
    """Once, when the code is loaded, by the kernels that need it."""
    asked: list[tuple[object, ...]] = []
    library = FakeLibrary()
    library.cuFuncSetAttribute = lambda *arguments: asked.append(arguments) or 0  # type: ignore[attr-defined]
    one = (1, 1, 1)
    launches = (Launch("k", one, one, 48 << 10, ()), Launch("more", one, one, 100 << 10, ()))
    kernels = driver_of(library).load(0, Image("sm_80", "", {"main": Launches(launches)}, cubin=b"code"))
    # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert asked == [(kernels["more"], 8, 100 << 10)]


def test_freeing_what_went_with_the_driver_is_no_error() -> None:
    for gone in (3, 4):
        driver_of(FakeLibrary(cuMemFree_v2=gone)).free(0, 0)
    with pytest.raises(CudaError, match="error 700"):
        driver_of(FakeLibrary(cuMemFree_v2=700)).free(0, 0)


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_LIBRARY", "libcuda_that_is_not_here.so.1")
    drivers.get.cache_clear()
    layer = Conv3D(4, 1, target=TARGET)
    with pytest.raises(ValueError, match=r"no NVIDIA driver here: libcuda_that_is_not_here.so.1 does not load"):
        layer(np.zeros((1, 2, 2, 2, 3), "float32"))


@pytest.mark.parametrize(
    ("dtype", "changes", "words"),
    [
        ("float16", {"cells": 256, "filters": 256}, r"needs \d+ bytes of shared memory .* sm_80 gives 166912"),
        ("float32", {"cells": 128, "filters": 256, "step": 64, "parts": 1}, "bytes of shared memory"),
        (
            "float32",
            {"cells": 256, "filters": 128, "threads_cells": 64, "threads_filters": 32, "step": 8, "parts": 1},
            r"needs \(2048, 1, 1\) threads .* sm_80 gives 1024",
        ),
    ],
)
def test_plans_beyond_the_limits_of_a_launch_are_refused(dtype: str, changes: dict[str, int], words: str) -> None:
    """Before a GPU sees them: a record of another version, say."""
    (plan,) = default_plans([replace(SPEC, dtype=dtype)])
    target = resolve(TARGET, 1)
    with pytest.raises(RuntimeError, match=words):
        lower(scheduling.scheduled_module(replace(plan, variant=replace(plan.variant, **changes)), target), target)


def test_too_many_blocks_are_refused() -> None:
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((65536, 32), name="x")
    out = te.compute((65536, 32), lambda i, j: x[i, j] + x[i, j], name="out")
    schedule = Schedule(te.create_prim_func([x, out]))
    for loop, tag in zip(schedule.get_loops(schedule.get_sblock("out")), ("blockIdx.y", "threadIdx.x"), strict=True):
        schedule.bind(loop, tag)
    with pytest.raises(RuntimeError, match=r"needs \(1, 65536, 1\) blocks, .* \(2147483647, 65535, 65535\)"):
        lower(schedule.mod, resolve(TARGET, 1))


@pytest.mark.parametrize("size", [(3, 4, 5), (0, 4, 5)])
@pytest.mark.parametrize("batch", [0, 1])
def test_results_without_elements(gpu: FakeDriver, batch: int, size: tuple[int, int, int]) -> None:
    spec = replace(SPEC, batch=batch, size=size, channels=3, filters=4)
    x, kernel, bias = data(spec)
    for source in (x, GpuArray(gpu, x)):
        result = Executor(TARGET).convolve(spec, interchange.wrap(source), Weights(kernel, bias, 0))
        assert isinstance(result, type(source))
        assert result.shape == spec.output_shape
    assert bool(gpu.launched) == (0 not in (batch, *size))


def small(**changes: object) -> Conv3DSpec:
    return replace(SPEC, channels=3, filters=4, **changes)  # type: ignore[arg-type]


def test_jax_waits_for_its_result(gpu: FakeDriver) -> None:
    """JAX works on streams of its own; packing of weights is waited for, too."""
    x, kernel, bias = data(small())
    result = Executor().convolve(small(), interchange.wrap(JaxArray(gpu, x)), Weights(kernel, bias, 0))
    assert isinstance(result, JaxArray)
    assert gpu.waited == [0, 0]
    assert oracle.relative_error(result.array, oracle.convolve(small(), x, kernel, bias)) < 2e-6


def test_jax_without_64_bits_is_refused(gpu: FakeDriver) -> None:
    """It gives float32 where float64 is asked for: a kernel would write beyond the result."""
    spec = small(dtype="float64")
    x, kernel, bias = data(spec)
    with pytest.raises(TypeError, match=r"dense float64 tensor .* Received: float32, .*jax_enable_x64"):
        Executor().convolve(spec, interchange.wrap(JaxArray(gpu, x.astype("float32"))), Weights(kernel, bias, 0))
    assert not gpu.launched


@pytest.mark.parametrize("number", [0, 1])
def test_torch_computes_on_its_current_stream(gpu: FakeDriver, number: int) -> None:
    gpu.devices = 2
    x, kernel, bias = data(small())
    result = Executor("cuda").convolve(small(), interchange.wrap(TorchTensor(gpu, x, number)), Weights(kernel, bias, 0))
    assert isinstance(result, TorchTensor) and result.number == number
    # weights and bias are packed on the default stream, for calls on all streams
    assert gpu.launched == [*2 * [(number, 0)], (number, FakeTorch.STREAM + number)]
    assert gpu.waited == [0]
    assert oracle.relative_error(result.array, oracle.convolve(small(), x, kernel, bias)) < 2e-6


def test_other_types_are_cast_there(gpu: FakeDriver) -> None:
    x, kernel, bias = data(small())
    whole = np.round(4 * x).astype("int32")
    expected = oracle.convolve(small(), whole.astype("float32"), kernel, bias)
    result = Executor().convolve(small(), interchange.wrap(TorchTensor(gpu, whole)), Weights(kernel, bias, 0))
    assert result.array.dtype == np.float32
    assert oracle.relative_error(result.array, expected) < 2e-6


@pytest.mark.usefixtures("gpu")
def test_the_fakes_are_taken() -> None:
    import jax

    assert isinstance(jax, FakeJax)


def test_unknown_libraries_are_refused(gpu: FakeDriver) -> None:
    class Other(GpuArray):
        __module__ = "other"

    x, kernel, bias = data(small())
    with pytest.raises(TypeError, match="may come from torch, CuPy or JAX"):
        Executor().convolve(small(), interchange.wrap(Other(gpu, x)), Weights(kernel, bias, 0))


def test_activations_that_no_kernel_computes_refuse_gpu_tensors(gpu: FakeDriver) -> None:
    layer = Conv3D(4, 1, activation="softmax", data_format="channels_last")
    with pytest.raises(ValueError, match="CPU memory only"):
        layer(GpuArray(gpu, np.zeros((1, 2, 2, 2, 3), "float32")))


def test_a_layer_in_channels_first_on_the_gpu(gpu: FakeDriver) -> None:
    layer = Conv3D(4, 2, data_format=CHANNELS_FIRST, activation="gelu")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype("float32")
    np.testing.assert_allclose(layer(GpuArray(gpu, x)).array, layer(x), rtol=1e-5, atol=1e-6)
