"""From CUDA source to machine code: by nvcc, or NVRTC where there is no nvcc."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_conv3d.engine.cuda import nvrtc, places
from tvm_conv3d.engine.cuda.nvrtc import find_nvrtc

#: Registers of a thread, at most, where a plan does not say. Without this bound ptxas aims at fuller multiprocessors,
#: and some kernels spill; launch bounds in its place make it take all registers that it may have.
_REGISTERS = "--maxrregcount=128"

#: Registers that a thread of a spilling kernel is granted in turn, by the blocks that must fit: ptxas may aim at fuller
#: multiprocessors than the bound asks for. The fewest that suffice leave room for the most blocks.
_GRANTED = (40, 48, 56, 64, 80, 96, 128)

#: Registers of a multiprocessor, of all architectures that code is made for.
_ALL_REGISTERS = 64 << 10

#: ptxas tells what each kernel needs.
_TALK = "--ptxas-options=-v"

_SPILLS = r"(\d+) bytes spill (?:stores|loads)"

#: What ptxas leaves undone, or in order where it could overlap (C7508, C7510); nvcc's `-w` leaves these lines.
_LOST = re.compile(r"Potential Performance Loss: (.*)")

#: A kernel whose bounds name no blocks.
_UNBOUNDED = re.compile(r"__launch_bounds__\(\d+\) (\w+)\(")

_KERNEL = re.compile(r"Compiling entry function '(\w+)'")

#: Seconds that a kernel may take to compile.
_PATIENCE = 300.0

#: (source, options) -> machine code, and what the compiler said.
_Compiler = Callable[[str, Sequence[str]], tuple[bytes, str]]


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
    return _without_spills(_compiler(arch), source)[0]


def measure(source: str, arch: str) -> Mapping[str, Resources]:
    """What each kernel in `source` needs on `arch`, by ptxas; raises as :func:`compile_measured`."""
    return compile_measured(source, arch)[1]


def compile_measured(source: str, arch: str) -> tuple[bytes, Mapping[str, Resources]]:
    """Machine code as :func:`compile_cubin` makes it, and what each of its kernels needs on `arch`, by ptxas.

    Raises:
        NoCompilerError: there is no compiler here.
        RuntimeError: it refuses the source, or ptxas gives up what it asks for, such as asynchronous products.
    """
    cubin, told = _without_spills(_compiler(arch), source)
    lost = _LOST.findall(told)
    if lost:
        raise RuntimeError(f"ptxas gives up what the source for {arch} asks for: {'; '.join(lost)}")
    return cubin, _measured(told)


def _measured(text: str) -> Mapping[str, Resources]:
    """What ptxas tells of each kernel."""
    _, *parts = _KERNEL.split(text)
    return {name: _resources(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


def _resources(text: str) -> Resources:
    """What ptxas tells of one kernel."""

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    stack = number(r"(\d+) bytes stack frame")
    return Resources(number(r"Used (\d+) registers"), number(_SPILLS), stack, number(r"(\d+) bytes smem"))


@functools.cache
def find_nvcc() -> str | None:
    """The path of nvcc, None where there is none."""
    for home in places.homes():
        candidate = home / "bin" / "nvcc"
        if candidate.is_file():
            return str(candidate)
    return shutil.which("nvcc")


def _compiler(arch: str) -> _Compiler:
    nvcc = find_nvcc()
    if nvcc is not None:
        return lambda source, options: _by_nvcc(nvcc, source, arch, options)
    library = find_nvrtc()
    if library is not None:
        return lambda source, options: nvrtc.compile_cubin(library, source, arch, options)
    raise NoCompilerError(
        "There is no CUDA compiler here. Put nvcc on PATH, set CUDA_HOME to a CUDA toolkit, or run: "
        f"pip install {nvrtc.PACKAGES[13]}"
    )


def _without_spills(compiler: _Compiler, source: str) -> tuple[bytes, str]:
    """Machine code and ptxas's report, of the first attempt in which no kernel spills, else of the usual one."""
    if not _UNBOUNDED.search(source):
        # a plan says what its kernels may have
        return compiler(source, (_TALK,))
    usual = found = compiler(source, (_REGISTERS, _TALK))
    for most in _GRANTED:
        spilling = _spilling(found[1])
        if not spilling:
            return found
        before, source = source, with_registers(source, spilling, most)
        if source != before:
            found = compiler(source, (_REGISTERS, _TALK))
    return usual if _spilling(found[1]) else found


def _spilling(text: str) -> list[str]:
    """The kernels that spill, by ptxas's report."""
    return [name for name, resources in _measured(text).items() if resources.spills]


def with_registers(source: str, kernels: Sequence[str], most: int) -> str:
    """`source` with launch bounds by which these kernels have up to `most` registers for a thread."""

    def bounds(match: re.Match[str]) -> str:
        threads = int(match[1])
        return f"__launch_bounds__({threads}, {max(1, _ALL_REGISTERS // (threads * most))}) {match[2]}("

    if not kernels:
        return source
    return re.sub(rf"__launch_bounds__\((\d+)(?:, \d+)?\) ({'|'.join(kernels)})\(", bounds, source)


def _by_nvcc(nvcc: str, source: str, arch: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Machine code and what the compiler said."""
    with tempfile.TemporaryDirectory(prefix="tvm_conv3d-") as folder:
        before, after = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        before.write_text(source)
        command = [nvcc, "-cubin", f"-arch={arch}", "-O3", "-w", *options, str(before), "-o", str(after)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"nvcc can't be run: {error}") from error
        if done.returncode or not after.exists():
            raise RuntimeError(f"nvcc refuses the source for {arch}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return after.read_bytes(), done.stderr + done.stdout
