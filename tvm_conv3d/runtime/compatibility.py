"""Whether code for a target runs on this machine, and the target of one of its GPUs."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from tvm_conv3d.runtime.cuda import driver
from tvm_conv3d.target import answers
from tvm_conv3d.target.cpu import features_of, host_target, is_cuda
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.gpu import cuda_target, gpu_traits, nearest
from tvm_conv3d.target.resolve import resolve

#: Operating systems by how their names begin in LLVM's triples. Object files of one do not load into another.
_SYSTEMS = {
    "apple": ("apple", "darwin", "macos", "ios", "tvos", "watchos", "xros", "visionos"),
    "windows": ("windows", "win32", "mingw", "cygwin", "msvc", "uefi"),
    "wasm": ("wasi", "emscripten"),
    "linux": ("linux", "gnu", "musl", "android"),
    "bare": ("none", "eabi", "elf"),
    "other": ("freebsd", "netbsd", "openbsd", "fuchsia", "haiku", "solaris", "aix", "zos", "hurd"),
}


#: Features whose instructions LLVM may emit, as opposed to hints for tuning.
_INSTRUCTIONS = re.compile(r"(avx|sse|ssse|amx|fma|f16c|bmi|lzcnt|movbe|popcnt|adx|gfni|vaes|vpclmul|neon|sve|v$)")


def requested_target(target: str | Mapping[str, Any] | Target | None, cores: int) -> Target:
    """As :func:`resolve`, where "cuda" without an architecture is this machine's first GPU.

    Raises:
        ValueError: as :func:`resolve`, or that GPU can't be used.
    """
    return gpu_target(0) if target in ("cuda", {"kind": "cuda"}) else resolve(target, cores)


@functools.cache
def gpu_target(number: int) -> Target:
    """The target of a GPU of this machine.

    Raises:
        ValueError: it can't be used, or there is no code for it.
    """
    return cuda_target(nearest(driver.device(number).capability).name)


@functools.cache
def check_runs_here(target: Target, gpu: int = 0) -> None:
    """Makes sure that code for `target` can run on this machine; elsewhere it would kill the process.

    Args:
        target: a CPU or a GPU.
        gpu: number of the GPU, where it is one.

    Raises:
        ValueError: the target is another architecture or operating system, or has instructions that this CPU lacks.
    """
    if is_cuda(target):
        driver.check_runs_here(gpu_traits(target), gpu)
        return
    host = answers.system_triple()
    triple = target.triple or host
    # where a triple names no system, the object file is of the usual format, ELF
    system, own = _system(triple) or "linux", _system(host)
    if triple.split("-")[0] != host.split("-")[0] or system != own or triple.endswith("x32"):
        raise ValueError(f"This machine is {host}: it can't run code for {target}. Compile for it, and run it there.")
    missing = sorted(
        feature
        for feature in features_of(target) - features_of(host_target(target.cores or 1))
        if _INSTRUCTIONS.match(feature)
    )
    if missing:
        raise ValueError(f"This CPU lacks {', '.join(missing)}: it can't run code for {target}.")


def _system(triple: str) -> str | None:
    """The operating system of an LLVM triple, by which its object files' format goes; None where it names none."""
    for part in triple.lower().split("-")[1:]:
        for system, beginnings in _SYSTEMS.items():
            if part.startswith(beginnings):
                return system
    return None
