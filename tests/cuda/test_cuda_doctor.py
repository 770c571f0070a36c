"""`doctor` says in words why CUDA does not work here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from cuda_fakes import FakeDriver, FakeLibrary, driver_of, fake_gpu
from tvm_conv3d.diagnostics import cuda_doctor as module
from tvm_conv3d.diagnostics import doctor
from tvm_conv3d.diagnostics.cuda_doctor import findings
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.runtime.cuda import driver as drivers

GPUS, COMPILER, RUNTIME, ATTEMPT = (
    f"CUDA, {part}" for part in ("driver and GPUs", "compiler", "TVM's runtime", "a convolution")
)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    monkeypatch.setattr(toolkit, "find_nvrtc", lambda: None)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_LIBRARY", "libcuda_that_is_not_here.so.1")
    monkeypatch.setattr(drivers, "get", drivers.Driver)
    found = dict(findings())
    assert "no NVIDIA driver here: libcuda_that_is_not_here.so.1 does not load" in found[GPUS]
    assert 'target="cuda:sm_90"' in found[GPUS]
    assert ATTEMPT not in found


@pytest.mark.parametrize(("status", "words"), [(100, "CUDA_VISIBLE_DEVICES"), (803, "restart"), (804, "too old")])
def test_a_driver_that_does_not_work(status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "get", lambda: driver_of(FakeLibrary(cuDeviceGetCount=status)))
    found = dict(findings())
    assert words in found[GPUS]
    assert ATTEMPT not in found


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch, count=0):
        found = dict(findings())
    assert "this process sees no GPU; look at CUDA_VISIBLE_DEVICES" in found[GPUS]
    assert ATTEMPT not in found


def test_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch, capability=86):
        found = dict(findings())
    assert found[GPUS] == "0: fake, compute capability 8.6, code for sm_86"
    assert found[ATTEMPT].startswith("right, relative error ")


def test_a_gpu_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch) as fake:
        monkeypatch.setattr(fake, "launch", lambda *_: None)
        assert dict(findings())[ATTEMPT].startswith("WRONG")


@pytest.mark.parametrize("capability", [61, 120])
def test_a_gpu_of_another_architecture(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch, capability=capability):
        found = dict(findings())
    assert f"no code for GPUs of compute capability {capability / 10:.1f}. Supported: sm_75" in found[GPUS]
    assert found[ATTEMPT].startswith("fails: There is no code")


def test_a_driver_older_than_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeDriver, *_: object) -> None:
        raise drivers.CudaError("cuModuleLoadData fails with error 222: the code was made by a newer CUDA.", 222)

    monkeypatch.setattr(FakeDriver, "load", refuse)
    # an architecture whose code no other test has loaded
    with fake_gpu(monkeypatch, capability=89):
        assert "fails: cuModuleLoadData fails with error 222" in dict(findings())[ATTEMPT]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    words = dict(findings())[COMPILER]
    assert "neither nvcc" in words and "pip install nvidia-cuda-nvrtc" in words


def loading(*names: str) -> Callable[[str], object]:
    def load(name: str) -> object:
        if name in names:
            return object()
        raise OSError(f"{name}: cannot open shared object file")

    return load


def test_tvms_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """`libcudart.so.13`: on the loader's path, elsewhere, nowhere."""
    toolkits = Path("/toolkit")
    monkeypatch.setattr(module, "_toolkits", lambda: [toolkits])
    there = str(toolkits / "lib64" / "libcudart.so.13")
    for names, words in (
        (("libcudart.so.13",), "libcudart.so.13 loads"),
        ((there,), f"libcudart.so.13 is at {there}, but not on the loader's path (LD_LIBRARY_PATH)"),
        ((), "libcudart.so.13 is missing; only TVM's own tools need it"),
    ):
        monkeypatch.setattr(ctypes, "CDLL", loading(*names))
        assert module._runtime().startswith(words)


def test_the_command_prints_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_measure", lambda: 0.0)
    assert doctor.examine() == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (GPUS, COMPILER, RUNTIME))
