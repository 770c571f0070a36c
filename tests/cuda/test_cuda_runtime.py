"""The call on a GPU: with a driver whose GPU is the CPU, and on a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cuda_fakes import FakeCupy, FakeDriver, FakeLibrary, GpuArray, JaxArray, driver_of, fake_gpu
from problems import data
from tvm_conv3d import Conv3D, conv3d
from tvm_conv3d.engine.build import compile_image
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Image, Launch, Launches
from tvm_conv3d.functional import convolution
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import compatibility, interchange, kept_weights
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.driver import CudaError
from tvm_conv3d.runtime.cuda.kernels import LoadedImage, Memory
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target import cpu
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.gpu import ARCHITECTURES, nearest
from tvm_conv3d.target.resolve import instruction_set, resolve, target_key, traits_of

SPEC = Conv3DSpec(1, (4, 5, 6), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


def has_gpu() -> bool:
    try:
        return drivers.Driver().count() > 0
    except CudaError:
        return False


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with fake_gpu(monkeypatch) as fake:
        yield fake


def expected(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return oracle.convolve(SPEC, x, kernel, bias)


def test_numpy_goes_there_and_back(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    executor = Executor("cuda:sm_80")
    for _ in range(2):
        result = executor.convolve(SPEC, interchange.wrap(x), Weights(kernel, bias, 0))
        assert isinstance(result, np.ndarray)
        assert oracle.relative_error(result, expected(x, kernel, bias)) < 2e-6
    # kernel and bias once, the input at each call
    assert gpu.uploads == 4
    executor.convolve(SPEC, interchange.wrap(x), Weights(2 * kernel, bias, 1))
    assert gpu.uploads == 7


def test_what_was_brought_there_is_freed(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    executor = Executor("cuda")
    executor.convolve(SPEC, interchange.wrap(x), Weights(kernel, bias, 0))
    assert len(gpu.memory) == 2
    del executor
    assert not gpu.memory


@pytest.mark.parametrize("target", [None, "cuda", "cuda:sm_80"])
def test_tensors_on_the_gpu_stay_there(gpu: FakeDriver, target: str | None) -> None:
    x, kernel, bias = data(SPEC)
    there = GpuArray(gpu, x)
    result = Executor(target).convolve(SPEC, interchange.wrap(there), Weights(kernel, bias, 0))
    assert isinstance(result, GpuArray)
    assert gpu.launched == [*2 * [(0, 0)], (0, FakeCupy.STREAM)]
    assert gpu.uploads == 2
    assert oracle.relative_error(result.array, expected(x, kernel, bias)) < 2e-6


def test_a_layer_takes_them_too(gpu: FakeDriver) -> None:
    layer = Conv3D(12, 3, padding="same", activation="relu")
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 6, 8)).astype("float32")
    on_cpu = layer(x)
    on_gpu = layer(GpuArray(gpu, x))
    assert isinstance(on_gpu, GpuArray)
    np.testing.assert_allclose(on_gpu.array, on_cpu, rtol=1e-4, atol=1e-5)


@pytest.fixture
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calls of the function keep lies in the memory of another test's GPU."""
    monkeypatch.setattr(kept_weights, "STORE", kept_weights.Store())
    monkeypatch.setattr(convolution, "_calls", Recent(8))
    monkeypatch.setattr(convolution, "_executors", Recent(8))


@pytest.mark.usefixtures("_nothing_kept")
def test_the_function_takes_weights_from_there(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    assert bias is not None
    for changed in (kernel, kernel + 1):
        weights = [GpuArray(gpu, changed), GpuArray(gpu, bias)]
        result = conv3d(GpuArray(gpu, x), *weights, padding=1)
        assert isinstance(result, GpuArray)
        assert oracle.relative_error(result.array, expected(x, changed, bias)) < 1e-5
        # and to an input in the CPU's memory
        result = conv3d(x, *weights, padding=1, target="cuda")
        assert oracle.relative_error(result, expected(x, changed, bias)) < 1e-5


@pytest.mark.usefixtures("_nothing_kept")
def test_the_function_reads_channels_inside_there_too(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    there = GpuArray(gpu, x).transpose((0, 4, 1, 2, 3))
    result = conv3d(there, kernel, bias, padding=1, data_format="channels_first")
    back = result.array.transpose(0, 2, 3, 4, 1)
    assert back.flags.c_contiguous
    assert oracle.relative_error(back, expected(x, kernel, bias)) < 1e-5


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_residual_operand_from_anywhere(gpu: FakeDriver, data_format: str) -> None:
    x, kernel, bias = data(SPEC)
    residual = np.random.default_rng(1).standard_normal(SPEC.output_shape).astype(np.float32)
    wanted = np.maximum(expected(x, kernel, bias) + residual, 0)
    first, last = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)
    options = {"padding": 1, "post_ops": ("add", "relu"), "data_format": data_format}

    def placed(array: np.ndarray, kind: type[GpuArray] = GpuArray) -> GpuArray:
        """In channels_first with the channels innermost in memory, as the input is."""
        there = kind(gpu, array)
        return there if data_format == "channels_last" else there.transpose(first)

    here = residual if data_format == "channels_last" else residual.transpose(first)
    for added in (placed(residual), placed(residual.astype(np.float64)), here, here.copy(), placed(residual, JaxArray)):
        gpu.waited.clear()
        uploads = gpu.uploads
        result = conv3d(placed(x), kernel, bias, residual=added, **options)
        assert isinstance(result, GpuArray)
        back = result.array if data_format == "channels_last" else result.array.transpose(last)
        assert oracle.relative_error(back, wanted) < 1e-5
        beside = type(added) is GpuArray
        # what is copied for the call is there before the kernels run, and not freed before they have run
        assert (FakeCupy.STREAM in gpu.waited) is not beside
        assert not beside or gpu.uploads - uploads in (0, 2)
    # and to an input in the CPU's memory
    given = x if data_format == "channels_last" else x.transpose(first)
    for added in (here, placed(residual)):
        result = conv3d(given, kernel, bias, residual=added, target="cuda", **options)
        back = result if data_format == "channels_last" else result.transpose(last)
        assert oracle.relative_error(back, wanted) < 1e-5
    # to the CPU's own code, too
    result = conv3d(given, kernel, bias, residual=placed(residual), target="llvm", **options)
    back = result if data_format == "channels_last" else result.transpose(last)
    assert oracle.relative_error(back, wanted) < 1e-5


@pytest.mark.usefixtures("_nothing_kept")
def test_results_without_elements_take_one_too(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    residual = GpuArray(gpu, np.zeros((0, *SPEC.output_shape[1:]), np.float32))
    result = conv3d(GpuArray(gpu, x[:0]), kernel, bias, padding=1, post_ops=("add",), residual=residual)
    assert result.shape == residual.shape


def test_the_second_gpu(gpu: FakeDriver) -> None:
    gpu.devices = 2
    x, kernel, bias = data(SPEC)
    Executor().convolve(SPEC, interchange.wrap(GpuArray(gpu, x, device=1)), Weights(kernel, bias, 0))
    assert gpu.launched == [*2 * [(1, 0)], (1, FakeCupy.STREAM + 1)]
    assert gpu.current == 0


def test_a_gpu_of_another_architecture(gpu: FakeDriver) -> None:
    x, kernel, bias = data(SPEC)
    with pytest.raises(ValueError, match=r"compute capability 8.0: it can't run code for sm_90"):
        Executor("cuda:sm_90").convolve(SPEC, interchange.wrap(GpuArray(gpu, x)), Weights(kernel, bias, 0))
    with pytest.raises(ValueError, match="target is a CPU, and the input lies on GPU 0"):
        Executor("llvm").convolve(SPEC, interchange.wrap(GpuArray(gpu, x)), Weights(kernel, bias, 0))
    gpu.capability = 61
    with pytest.raises(ValueError, match=r"no code for GPUs of compute capability 6.1"):
        Executor().convolve(SPEC, interchange.wrap(GpuArray(gpu, x)), Weights(kernel, bias, 0))


def test_a_tensor_that_is_gone_says_so(gpu: FakeDriver) -> None:
    source = interchange.wrap(GpuArray(gpu, data(SPEC)[0]))
    with pytest.raises(ValueError, match="CPU memory only"):
        source.numpy()


def test_code_of_older_gpus_runs_on_newer_ones_of_their_kind() -> None:
    assert nearest(86).name == "sm_86"
    assert nearest(87).name == "sm_86"
    assert nearest(90).name == "sm_90"
    with pytest.raises(ValueError, match="Supported: sm_75"):
        nearest(120)


def test_images_survive_files() -> None:
    main = Launches((Launch("k", (1, 2, 3), (4, 5, 6), 7, ("x", "out")),), {"sums": 64})
    pack = Launches((Launch("p", (1, 1, 1), (1, 1, 1), 0, ("kernel",)),))
    image = Image("sm_80", "source", {"main": main, "pack": pack}, b"\x00\xff")
    assert image.kernels == ["k", "p"]
    assert Image.from_bytes(image.to_bytes()) == image
    with pytest.raises(ValueError, match="no code for a GPU"):
        Image.from_bytes(b"ELF")
    with pytest.raises(ValueError, match="damaged"):
        Image.from_bytes(image.to_bytes()[:40])


def two_functions() -> Any:
    """main: out = x * kernel; pack: packed = kernel + 1, in another order of arguments."""
    from tvm import IRModule, te
    from tvm.s_tir import Schedule

    x, kernel = te.placeholder((40,), name="x"), te.placeholder((40,), name="kernel")
    out = te.compute((40,), lambda i: x[i] * kernel[i], name="out")
    packed = te.compute((40,), lambda i: kernel[i] + 1.0, name="packed")
    functions = {"main": te.create_prim_func([x, kernel, out]), "pack": te.create_prim_func([packed, kernel])}
    schedule = Schedule(IRModule(functions))
    for name, block in (("main", "out"), ("pack", "packed")):
        schedule.work_on(name)
        (loop,) = schedule.get_loops(schedule.get_sblock(block))
        for part, tag in zip(schedule.split(loop, [None, 8]), ("blockIdx.x", "threadIdx.x"), strict=True):
            schedule.bind(part, tag)
    return schedule.mod


def test_an_image_may_have_several_functions(gpu: FakeDriver) -> None:
    image = Image.from_bytes(compile_image(two_functions(), resolve("cuda:sm_80", 1)).to_bytes())
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(40, np.float32) for name in ("x", "kernel", "packed", "out")}
    memory = {name: Memory.holding(0, array) for name, array in arrays.items()}
    functions = LoadedImage(image).functions
    functions["pack"](0, 0, {name: memory[name].address for name in ("kernel", "packed")})
    # by name: what the first wrote is the other's kernel
    functions["main"](
        0, 0, {"x": memory["x"].address, "kernel": memory["packed"].address, "out": memory["out"].address}
    )
    gpu.download(0, arrays["out"], memory["out"].address)
    np.testing.assert_array_equal(arrays["out"], arrays["x"] * (arrays["kernel"] + 1))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("cuda:sm_12", "must be one of sm_75"),
        ("cuda:90", "Do you mean cuda:sm_90"),
        ({"kind": "cuda", "arch": "gfx90a"}, "must be one of sm_75"),
    ],
)
def test_unknown_architectures(target: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(target, 1)  # type: ignore[arg-type]


def test_targets_of_gpus() -> None:
    target = resolve("cuda:sm_90", 4)
    assert traits_of(target) is ARCHITECTURES["sm_90"]
    assert target_key(target) == instruction_set(target) == "cuda-sm_90"
    assert cpu.thread_count(target) == 1
    assert resolve({"kind": "cuda", "arch": "sm_90"}, 1) is resolve(target, 1)
    # as the tuner's building processes get it
    again = Target(target.text)
    assert Target.of_tvm(again.as_tvm()) == again == target
    assert traits_of(again) is ARCHITECTURES["sm_90"]


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_no_gpu_is_said_in_words() -> None:
    with pytest.raises(ValueError, match=r"name its architecture: \"cuda:sm_90\""):
        compatibility.requested_target("cuda", 1)
    x, kernel, bias = data(SPEC)
    with pytest.raises(ValueError, match=r"can't be used|no NVIDIA driver"):
        Executor("cuda:sm_80").convolve(SPEC, interchange.wrap(x), Weights(kernel, bias, 0))


def test_a_driver_that_fails_is_named() -> None:
    broken = driver_of(FakeLibrary(cuDeviceGetCount=100))
    with pytest.raises(CudaError, match="cuDeviceGetCount fails with error 100: no GPU is visible"):
        broken.count()


def test_no_compiler_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    monkeypatch.setattr(toolkit, "find_nvrtc", lambda: None)
    with pytest.raises(toolkit.NoCompilerError, match="pip install"):
        toolkit.compile_cubin("", "sm_90")


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_on_a_real_gpu(dtype: str, data_format: str) -> None:
    torch = pytest.importorskip("torch")
    layer = Conv3D(24, 3, padding="same", activation="relu", dtype=dtype, data_format=data_format)
    shape = (2, 6, 7, 9, 16) if data_format == "channels_last" else (2, 16, 6, 7, 9)
    x = torch.randn(shape, dtype=getattr(torch, dtype))
    on_cpu = layer(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu = layer(x.cuda())
    stream.synchronize()
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=2e-2, atol=2e-2)
