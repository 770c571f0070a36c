"""What is needed beside this package: qemu, and zig as compiler and linker for ARM."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm_ffi.libinfo
from tvm import libinfo

_RUNNER = Path(__file__).with_name("runner.c")
_INCLUDES = [f"-I{path}" for path in (tvm_ffi.libinfo.find_include_path(), libinfo.find_include_path())]

# without zig's own checks of C, whose messages take half a minute to compile, and without its C library, which takes
# another; the compiler's own functions, `exp` among them, take some seconds
_FLAGS = ("--target=aarch64-linux-none", "-O2", "-fno-sanitize=all", "-ffreestanding", "-nostdlib", "-static")
_WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Program:
    """An object file that is linked with the runner.

    Attributes:
        path: of the program.
        functions: that it may call.
    """

    path: Path
    functions: tuple[str, ...]


def missing() -> str:
    """What is missing to run ARM code here, and how to get it; "" where nothing is."""
    needed = {
        "qemu-aarch64 (apt-get install qemu-user-static)": qemu() is None,
        "ziglang (pip install 'tvm-conv3d[arm]')": importlib.util.find_spec("ziglang") is None,
    }
    found = [name for name, absent in needed.items() if absent]
    return f"ARM code is run by what is not installed: {', '.join(found)}" if found else ""


@functools.cache
def qemu() -> str | None:
    """The path of qemu for one ARM program, None where there is none."""
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def link(code: bytes, functions: Sequence[str]) -> Program:
    """The program that calls functions of an object file.

    Args:
        code: the object file.
        functions: names, as in the module that was compiled.

    Raises:
        ValueError: the linker refuses it, as one of the functions is missing, say.
        FileNotFoundError: zig is not installed.
    """
    names = tuple(functions)
    path = workspace() / hashlib.sha256(code + repr(names).encode()).hexdigest()[:24]
    if not path.exists():
        code_file = path.with_suffix(".o")
        code_file.write_bytes(code)
        zig(*_FLAGS, str(runner(names)), str(code_file), "-lcompiler_rt", "-o", str(path))
    return Program(path, names)


@functools.cache
def workspace() -> Path:
    """A folder of this process, removed at its end."""
    path = Path(tempfile.mkdtemp(prefix="arm_on_cpu_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def runner(functions: tuple[str, ...]) -> Path:
    """The runner's object file, with a table of these functions."""
    path = workspace() / f"runner-{'-'.join(functions)}.o"
    table = f"-DFUNCTIONS(F)={' '.join(f'F({name})' for name in functions)}"
    zig(*_FLAGS, *_WARNINGS, *_INCLUDES, table, "-c", str(_RUNNER), "-o", str(path))
    return path


def zig(*arguments: str) -> None:
    """Compiles or links C for ARM.

    Raises:
        ValueError: zig refuses it; says why.
        FileNotFoundError: zig is not installed.
    """
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise FileNotFoundError(missing())
    command = [str(Path(found.origin).with_name("zig")), "cc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"zig refuses it: {done.stderr[-2000:]}")
