"""NVRTC, where there is no nvcc: it needs no GPU, and runs wherever it is found."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cuda_checks import default_plans
from tvm_conv3d.diagnostics.cuda_doctor import findings
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.build import compile_image
from tvm_conv3d.engine.cuda import nvrtc, places, toolkit
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

LIBRARY = toolkit.find_nvrtc()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")

needs_headers = pytest.mark.skipif(
    LIBRARY is None or bool(nvrtc.missing_headers(LIBRARY)), reason="needs CUDA's headers for half types"
)

SPEC = Conv3DSpec(1, (3, 4, 5), 16, 24, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

#: In one kernel.
POINTWISE = Conv3DSpec(1, (3, 4, 5), 64, 64, (1, 1, 1))

#: Machine of an ELF file.
_CUDA = 190


@pytest.fixture(autouse=True)
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)


@pytest.fixture
def no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the library alone was installed."""
    monkeypatch.setattr(nvrtc, "header_folders", lambda library: [tmp_path])


def layers(dtype: str) -> list[Conv3DSpec]:
    """One for each algorithm, and for sums in parts."""
    spec = replace(SPEC, dtype=dtype)
    found = [spec, replace(spec, post_ops=("gelu",), groups=16, filters=16), replace(spec, channels=512)]
    return [*found, replace(spec, size=(8, 28, 28), channels=64, filters=64)]


def test_layers_are_of_all_algorithms() -> None:
    specs = [spec for dtype in ("float32", "float16") for spec in layers(dtype)]
    plans = default_plans(specs, "cuda:sm_90")
    assert {plan.algorithm for plan in plans} == {"window", "gemm", "tensor_gemm", "winograd_gemm"}
    assert any(getattr(plan.variant, "parts", 1) > 1 for plan in plans)


def source_of(spec: Conv3DSpec, arch: str) -> str:
    (plan,) = default_plans([spec], f"cuda:{arch}")
    target = resolve(f"cuda:{arch}", 1)
    return lower(scheduling.scheduled_module(plan, target), target).source


def assert_machine_code(cubin: bytes) -> None:
    assert cubin.startswith(b"\x7fELF")
    assert struct.unpack_from("<H", cubin, 18) == (_CUDA,)
    assert b".text.main_kernel" in cubin


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("no_headers")
def test_the_library_alone_compiles(arch: str, dtype: str) -> None:
    for spec in layers(dtype):
        assert_machine_code(toolkit.compile_cubin(source_of(spec, arch), arch))


@needs_headers
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_compile_with_headers(arch: str, dtype: str) -> None:
    for spec in layers(dtype):
        assert_machine_code(toolkit.compile_cubin(source_of(spec, arch), arch))


def test_machine_code_is_the_architectures() -> None:
    assert len({toolkit.compile_cubin(source_of(SPEC, arch), arch) for arch in ARCHITECTURES}) == len(ARCHITECTURES)


def test_images_have_its_machine_code() -> None:
    target = resolve("cuda:sm_90", 1)
    (plan,) = default_plans([SPEC], "cuda:sm_90")
    assert_machine_code(compile_image(scheduling.scheduled_module(plan, target), target).cubin)


def test_it_tells_what_kernels_need() -> None:
    """Of each kernel: Winograd's product has shared memory, its transforms do without."""
    found = toolkit.measure(source_of(layers("float32")[-1], "sm_80"), "sm_80")
    assert len(found) == 3
    assert all(16 <= resources.registers <= 128 and resources.spills == 0 for resources in found.values())
    assert sorted(resources.shared > 0 for resources in found.values()) == [False, False, True]


def test_spilling_kernels_are_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With launch bounds that grant more registers; here bounds that leave too few are planted."""
    source = source_of(replace(POINTWISE, size=(16, 56, 56)), "sm_80")
    threads = int(re.findall(r"__launch_bounds__\((\d+)\)", source)[0])
    source = source.replace(f"__launch_bounds__({threads})", f"__launch_bounds__({threads}, {2048 // threads})")
    (mended,) = toolkit.measure(source, "sm_80").values()
    assert mended.spills == 0
    monkeypatch.setattr(toolkit, "_GRANTED", ())
    (spilling,) = toolkit.measure(source, "sm_80").values()
    assert spilling.spills > 0


@pytest.mark.usefixtures("no_headers")
def test_what_is_missing_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"no header cuda_fp16\.h.*pip install nvidia-cuda-nvrtc"):
        toolkit.compile_cubin(source_of(replace(SPEC, dtype="float16"), "sm_80"), "sm_80")
    words = dict(findings())["CUDA, compiler"]
    assert "cuda_fp16.h, nv/target, crt/mma.h is missing" in words
    assert "pip install nvidia-cuda-nvrtc" in words


def test_wrong_source_is_refused_in_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"NVRTC refuses the source for sm_80: .*no_such_type"):
        toolkit.compile_cubin("no_such_type x;", "sm_80")


def test_headers_beside_the_library_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA 13 has some of them in a folder of its own."""
    for folder in ("wheel/cu13/include/cccl", "wheel/cu13/lib", "other/include", "wheel/cu12/include"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(places, "homes", lambda: iter([tmp_path / "other"]))
    monkeypatch.setattr(places, "wheels", lambda: [tmp_path / "wheel"])
    found = nvrtc.header_folders(str(tmp_path / "wheel/cu13/lib/libnvrtc.so.13"))
    names = ["wheel/cu13/include", "wheel/cu13/include/cccl", "other/include", "wheel/cu12/include"]
    assert found == [tmp_path / name for name in names]
