"""g++: the machine and the precompiled header once a process, the kernels in batches."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_on_cpu.rewrite import Kernel, UnsupportedKernelError, rewrite

_DEVICE = Path(__file__).parent / "device"
_FLAGS = ("-std=c++17", "-march=native", "-fPIC")
_KERNEL_FLAGS = (*_FLAGS, "-O1", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti", "-w")


@dataclass(frozen=True)
class Program:
    """Compiled kernels of one source; several programs may share a library."""

    library: Path
    prefix: str
    kernels: dict[str, Kernel]


_programs: dict[str, Program] = {}


def gxx() -> str | None:
    """The compiler's path, or None where there is none."""
    return shutil.which("g++")


def compile_kernels(source: str) -> Program:
    """Compile CUDA source for the CPU. The same source is compiled once a process.

    Raises:
        UnsupportedKernelError: the source has something that this tool does not know.
    """
    return compile_sources([source])[0]


def compile_sources(sources: Sequence[str]) -> list[Program]:
    """Compile several sources in one call of g++, which saves its start for each.

    Raises:
        UnsupportedKernelError: one of the sources has something that this tool does not know.
    """
    prefixes = ["k" + hashlib.sha256(source.encode()).hexdigest()[:16] for source in sources]
    missing = {p: s for p, s in zip(prefixes, sources, strict=True) if p not in _programs}
    if missing:
        _compile_new(missing)
    return [_programs[prefix] for prefix in prefixes]


def _compile_new(sources: dict[str, str]) -> None:
    rewritten = {prefix: rewrite(source, prefix) for prefix, source in sources.items()}
    code = "\n".join(result.code for result in rewritten.values())
    try:
        library = _build(code, "-".join(sources))
    except UnsupportedKernelError as error:
        if len(sources) > 1:  # one by one, so that the message names the source that is wrong
            for prefix, source in sources.items():
                _compile_new({prefix: source})
        names = ", ".join(kernel.name for result in rewritten.values() for kernel in result.kernels)
        raise UnsupportedKernelError(f"{names}: {error}") from None
    for prefix, result in rewritten.items():
        _programs[prefix] = Program(library, prefix, {kernel.name: kernel for kernel in result.kernels})


@functools.cache
def workspace() -> Path:
    """A folder of this process, removed at its end."""
    path = Path(tempfile.mkdtemp(prefix="cuda_on_cpu_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def machine() -> Path:
    """The program that runs kernels."""
    folder = workspace()
    matrix = folder / "matrix.o"
    _gxx("-c", "-O3", *_FLAGS, str(_DEVICE / "matrix.cpp"), "-o", str(matrix))
    program = folder / "machine"
    sources = [str(path) for path in sorted(_DEVICE.glob("*.cpp")) if path.stem != "matrix"]
    _gxx("-O2", *_FLAGS, "-rdynamic", *sources, str(matrix), "-ldl", "-o", str(program))
    return program


@functools.cache
def _headers() -> Path:
    """The folder whose header is precompiled."""
    folder = workspace() / "include"
    folder.mkdir()
    for header in _DEVICE.glob("*.h"):
        shutil.copy(header, folder)
    _gxx(*_KERNEL_FLAGS, "-x", "c++-header", str(folder / "cuda_on_cpu.h"), "-o", str(folder / "cuda_on_cpu.h.gch"))
    return folder


def _build(code: str, name: str) -> Path:
    stem = workspace() / hashlib.sha256(name.encode()).hexdigest()[:16]
    source, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    source.write_text('#include "cuda_on_cpu.h"\n' + code)
    try:
        _gxx(*_KERNEL_FLAGS, "-I", str(_headers()), "-shared", str(source), "-o", str(library))
    except RuntimeError as error:
        raise UnsupportedKernelError(str(error)) from None
    return library


def _gxx(*arguments: str) -> None:
    compiler = gxx()
    if compiler is None:
        raise FileNotFoundError("g++ is not on the PATH: CUDA kernels cannot be compiled for the CPU")
    result = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line][:5]
        raise RuntimeError("g++ refuses it:\n" + ("\n".join(errors) or result.stderr[-2000:]))
