"""Compilers of CUDA source: nvcc, or NVRTC where there is no nvcc."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Environment variables that name the toolkit's folder.
_HOMES = ("CUDA_HOME", "CUDA_PATH")

_NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")

#: Registers of a thread, at most. Without this bound ptxas aims at fuller multiprocessors, and some kernels spill.
_REGISTERS = "--maxrregcount=128"

#: What is tried in turn while a kernel spills, although registers are free: ptxas's choices hang on details.
_OTHER_REGISTERS = ("--maxrregcount=96", "--maxrregcount=168", "-Xptxas=--register-usage-level=0")

_SPILLS = r"(\d+) bytes spill (?:stores|loads)"

#: Seconds that a kernel may take to compile.
_PATIENCE = 300.0


class NoCompilerError(RuntimeError):
    """There is neither nvcc nor NVRTC here."""


@dataclass(frozen=True)
class Resources:
    """What ptxas tells of a kernel.

    Attributes:
        registers: of a thread.
        spills: bytes that a thread stores to and loads from memory for want of registers.
        stack: bytes of a thread's stack frame.
        shared: bytes of statically sized shared memory of a block.
    """

    registers: int
    spills: int
    stack: int
    shared: int


def compile_cubin(source: str, arch: str) -> bytes:
    """Machine code of `source` for `arch` ("sm_90").

    Raises:
        NoCompilerError: there is no compiler here.
        RuntimeError: the compiler refuses the source; says why.
    """
    nvcc = find_nvcc()
    if nvcc is not None:
        return _without_spills(nvcc, source, arch)[0]
    library = find_nvrtc()
    if library is not None:
        return _by_nvrtc(library, source, arch)
    raise NoCompilerError(
        "There is no CUDA compiler here. Put nvcc on PATH, set CUDA_HOME to a CUDA toolkit, or run: "
        "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
    )


def measure(source: str, arch: str) -> Resources:
    """What the kernel in `source` needs on `arch`, by ptxas.

    Raises:
        NoCompilerError: there is no nvcc.
        RuntimeError: it refuses the source.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise NoCompilerError("ptxas comes with the CUDA toolkit: put nvcc on PATH or set CUDA_HOME.")
    text = _without_spills(nvcc, source, arch)[1]

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    spills = number(_SPILLS)
    stack = number(r"(\d+) bytes stack frame")
    return Resources(number(r"Used (\d+) registers"), spills, stack, number(r"(\d+) bytes smem"))


@functools.cache
def find_nvcc() -> str | None:
    """The path of nvcc, None where there is none."""
    for home in _homes():
        candidate = home / "bin" / "nvcc"
        if candidate.is_file():
            return str(candidate)
    return shutil.which("nvcc")


@functools.cache
def find_nvrtc() -> str | None:
    """The name or path by which NVRTC loads, None where it does not."""
    folders = [home / part for home in _homes() for part in ("lib64", "lib")]
    paths = [str(folder / name) for folder in folders for name in _NVRTC]
    paths += [str(path) for folder in _wheels() for name in _NVRTC for path in folder.glob(f"*/lib/{name}")]
    for name in (*_NVRTC, *paths):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def _homes() -> Iterator[Path]:
    for variable in _HOMES:
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    yield Path("/usr/local/cuda")


def _wheels() -> list[Path]:
    """Folders of NVIDIA's wheels."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def _without_spills(nvcc: str, source: str, arch: str) -> tuple[bytes, str]:
    """Machine code and ptxas's report, of the first options with which no kernel spills, else of the usual ones."""
    usual = _by_nvcc(nvcc, source, arch, _REGISTERS)
    found = usual
    for options in _OTHER_REGISTERS:
        if not any(map(int, re.findall(_SPILLS, found[1]))):
            return found
        found = _by_nvcc(nvcc, source, arch, options)
    return usual if any(map(int, re.findall(_SPILLS, found[1]))) else found


def _by_nvcc(nvcc: str, source: str, arch: str, *options: str) -> tuple[bytes, str]:
    """Machine code and what the compiler said."""
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        before, after = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        before.write_text(source)
        command = [
            nvcc,
            "-cubin",
            f"-arch={arch}",
            "-O3",
            "-w",
            "-Xptxas",
            "-v",
            *options,
            str(before),
            "-o",
            str(after),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"nvcc can't be run: {error}") from error
        if done.returncode or not after.exists():
            raise RuntimeError(f"nvcc refuses the source for {arch}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return after.read_bytes(), done.stderr + done.stdout


def _by_nvrtc(library: str, source: str, arch: str) -> bytes:
    nvrtc = ctypes.CDLL(library)
    program = ctypes.c_void_p()

    def text_of(size_name: str, text_name: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, size_name)(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, text_name)(program, buffer)
        return buffer.raw

    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError(f"{library} can't be used.")
    try:
        headers = [home / "include" for home in _homes()]
        headers += [path.parent for folder in _wheels() for path in folder.glob("*/include/cuda_fp16.h")]
        options = [
            f"--gpu-architecture={arch}",
            "--std=c++17",
            _REGISTERS,
            *(f"-I{path}" for path in headers if path.is_dir()),
        ]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            log = text_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"NVRTC refuses the source for {arch}: {log.strip()[-2000:]}")
        return text_of("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
