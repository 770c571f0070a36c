"""What the code is compiled for: TVM targets of this machine and of others, and the facts that schedules need."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_conv3d import dot_units
from tvm_conv3d.cuda.architectures import GpuTraits, cuda_target, gpu_traits, nearest
from tvm_conv3d.dot_units import DotUnit

if TYPE_CHECKING:
    from tvm.target import Target

#: Bytes of a core's caches where the system does not tell.
_USUAL_CACHES = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}

#: Bytes of the shared cache that one core can count on: a virtual machine sees all of its host's, and has its part.
_MOST_L3_PER_CORE = 16 << 20

#: CPUs that take two cycles for an operation on 512 bits.
_SPLIT = ("znver4",)

#: Architectures that code can be made for.
_ARCHITECTURES = ("x86_64", "aarch64", "arm", "riscv64")

#: Operating systems by how their names begin in LLVM's triples. Object files of one do not load into another.
_SYSTEMS = {
    "apple": ("apple", "darwin", "macos", "ios", "tvos", "watchos", "xros", "visionos"),
    "windows": ("windows", "win32", "mingw", "cygwin", "msvc", "uefi"),
    "wasm": ("wasi", "emscripten"),
    "linux": ("linux", "gnu", "musl", "android"),
    "bare": ("none", "eabi", "elf"),
    "other": ("freebsd", "netbsd", "openbsd", "fuchsia", "haiku", "solaris", "aix", "zos", "hurd"),
}

#: LLVM features that decide the register tile, and the flag by which Linux names each.
_DECISIVE_FEATURES = {"avx512f": "avx512f", "avx2": "avx2", "avx": "avx", "fma": "fma", "f16c": "f16c"}


#: Features whose instructions LLVM may emit, as opposed to hints for tuning.
_INSTRUCTIONS = re.compile(r"(avx|sse|ssse|amx|fma|f16c|bmi|lzcnt|movbe|popcnt|adx|gfni|vaes|vpclmul|neon|sve|v$)")


@dataclass(frozen=True)
class CpuTraits:
    """What a schedule has to know of a CPU.

    Attributes:
        vector_bits: width of the vector registers that are worth using.
        registers: number of those registers.
        cores: threads that run at once.
        l1, l2, l3: bytes of data cache: per core, per core, and of the shared one what `cores` can count on.
        split: an operation on a whole vector takes as long as two on half a vector.
        dot: its dot-product units, the faster of an element type first.
    """

    vector_bits: int
    registers: int
    cores: int
    l1: int
    l2: int
    l3: int
    split: bool = False
    dot: tuple[DotUnit, ...] = ()

    def dot_units(self, dtype: str) -> tuple[DotUnit, ...]:
        """The units that multiply `dtype`, the faster first; none where there is none."""
        return tuple(unit for unit in self.dot if unit.dtype == dtype)

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // int(re.sub(r"\D", "", dtype))


def available_cpus() -> int:
    """Logical CPUs that this process may use (its affinity mask, not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


@functools.cache
def host_target(cores: int) -> Target:
    """The LLVM target of this machine.

    A virtual machine can hide instructions that the CPU's model has: what the system does not report is switched off,
    as executing it would kill the process.
    """
    from tvm.target import Target, codegen

    config: dict[str, Any] = {"kind": "llvm", "num-cores": cores}
    cpu = str(codegen.llvm_get_system_cpu())
    if codegen.llvm_is_valid_cpu(cpu, str(codegen.llvm_get_system_triple())):
        config["mcpu"] = cpu
    attributes = []
    flags = _linux_cpu_flags()
    if flags:
        promised = _features(Target(config))
        hidden = [f for f, flag in _DECISIVE_FEATURES.items() if f in promised and flag not in flags]
        attributes += [f"-{feature}" for feature in (*hidden, *dot_units.hidden(promised, flags))]
    attributes += _full_width_attributes(Target(config))
    if attributes:
        config["mattr"] = attributes
    return Target(config)


def resolve(target: str | Mapping[str, Any] | Target | None, cores: int) -> Target:
    """The target that a user means.

    Args:
        target: None or "llvm" for this machine, a dict such as `{"kind": "llvm", "mcpu": "haswell"}`, "cuda:sm_90" or
            `{"kind": "cuda", "arch": "sm_90"}` for a GPU, or a TVM target.
        cores: threads to plan for where the target does not say.

    Raises:
        ValueError: `target` is something else, or TVM refuses it.
    """
    from tvm.target import Target

    if target is None or target == "llvm":
        return host_target(cores)
    arch = _cuda_architecture(target)
    if arch is not None:
        return cuda_target(arch)
    if isinstance(target, Mapping):
        config = {"num-cores": cores, **target} if target.get("kind") == "llvm" else dict(target)
        _check_config(config)
        try:
            target = Target(config)
        except Exception as error:
            raise ValueError(f"TVM refuses this target. Received: target={config}. It says: {error}") from error
        extra = _full_width_attributes(target)
        if extra:
            config["mattr"] = [*config.get("mattr", ()), *extra]
            target = Target(config)
    if not isinstance(target, Target):
        raise ValueError(
            '`target` must be None or "llvm" (this machine), "cuda" (its GPU) or "cuda:sm_90", a dict such as '
            f'{{"kind": "llvm", "mcpu": "haswell"}} or a tvm.target.Target. Received: target={target!r}'
        )
    if str(target.kind.name) == "cuda":
        return cuda_target(str(target.attrs.get("arch", "")))
    if str(target.kind.name) != "llvm":
        raise ValueError(f"Only targets of the kinds llvm and cuda are supported. Received: target={target}")
    return target


def _cuda_architecture(target: object) -> str | None:
    """The architecture that "cuda:sm_90" or {"kind": "cuda", "arch": "sm_90"} names; "" where it names none."""
    if isinstance(target, str):
        kind, _, arch = target.partition(":")
        return arch if kind == "cuda" else None
    if isinstance(target, Mapping) and target.get("kind") == "cuda":
        return str(target.get("arch", ""))
    return None


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
    from tvm_conv3d.cuda import driver

    return cuda_target(nearest(driver.device(number).capability).name)


def is_cuda(target: Target) -> bool:
    """Whether code for `target` runs on a GPU."""
    return str(target.kind.name) == "cuda"


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
        from tvm_conv3d.cuda import driver

        driver.check_runs_here(gpu_traits(target), gpu)
        return
    from tvm.target import codegen

    host = str(codegen.llvm_get_system_triple())
    triple = str(target.attrs.get("mtriple", "")) or host
    # where a triple names no system, the object file is of the usual format, ELF
    system, own = _system(triple) or "linux", _system(host)
    if triple.split("-")[0] != host.split("-")[0] or system != own or triple.endswith("x32"):
        raise ValueError(f"This machine is {host}: it can't run code for {target}. Compile for it, and run it there.")
    missing = sorted(
        feature
        for feature in _features(target) - _features(host_target(int(target.attrs.get("num-cores", 1))))
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


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuses what TVM and LLVM would answer with a crash or in silence.

    Raises:
        ValueError: says which entry, and what is allowed.
    """
    if config.get("kind") != "llvm":
        return
    from tvm.target import codegen

    cores = config["num-cores"]
    if not isinstance(cores, int) or cores < 1:
        raise ValueError(f"The target's `num-cores` must be a positive integer. Received: target={dict(config)}")
    triple = str(config.get("mtriple") or codegen.llvm_get_system_triple())
    architecture = triple.split("-")[0]
    if not architecture.startswith(_ARCHITECTURES):
        allowed = ", ".join(_ARCHITECTURES)
        raise ValueError(f"The target's architecture must be one of {allowed}. Received: mtriple={triple!r}")
    cpu = str(config.get("mcpu", ""))
    if cpu not in ("", "generic") and not codegen.llvm_is_valid_cpu(cpu, triple):
        raise ValueError(f"LLVM knows no such processor for {triple}. Received: mcpu={cpu!r}")
    if architecture.startswith("riscv") and "+v" in map(str, config.get("mattr", ())):
        raise ValueError("RISC-V vectors are not supported: leave +v out of `mattr`.")


def traits_of(target: Target) -> CpuTraits | GpuTraits:
    """Facts of `target` that its schedules need."""
    return gpu_traits(target) if is_cuda(target) else cpu_traits(target)


def cpu_traits(target: Target) -> CpuTraits:
    """Facts of `target`; cache sizes are this machine's when the system tells them."""
    features = _features(target)
    bits, registers = 128, 16
    if "avx512f" in features:
        bits, registers = 512, 32
    elif "avx2" in features or "avx" in features:
        bits = 256
    elif "neon" in features:
        registers = 32
    caches = {**_USUAL_CACHES, **_linux_caches()}
    cores = thread_count(target)
    l3 = min(caches[3], cores * _MOST_L3_PER_CORE)
    split = bits == 512 and str(target.attrs.get("mcpu", "")) in _SPLIT
    return CpuTraits(bits, registers, cores, caches[1], caches[2], l3, split, dot_units.units(features))


def target_key(target: Target) -> str:
    """A short name of the target's processor and instruction set, for folders and records."""
    if is_cuda(target):
        return f"cuda-{gpu_traits(target).name}"
    cpu = str(target.attrs.get("mcpu", "generic"))
    triple = str(target.attrs.get("mtriple", ""))
    name = "-".join(part for part in (str(target.kind.name), triple.split("-")[0], cpu) if part)
    hidden = sorted(str(a)[1:] for a in target.attrs.get("mattr", ()) if str(a).startswith("-"))
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-no_".join([name, *(h for h in hidden if h in _DECISIVE_FEATURES)]))


@functools.cache
def instruction_set(target: Target, dtype: str = "float32") -> str:
    """What plans for `dtype` depend on, so that they fit targets that share it.

    That is architecture, vector width in bits, number of registers, and the dot-product units that multiply `dtype`,
    if there are some; or the GPU.
    """
    if is_cuda(target):
        return f"cuda-{gpu_traits(target).name}"
    from tvm.target import codegen

    triple = str(target.attrs.get("mtriple", "")) or str(codegen.llvm_get_system_triple())
    traits = cpu_traits(target)
    units = "".join(f"+{unit.feature}" for unit in traits.dot_units(dtype))
    return f"{triple.split('-')[0]}-{traits.vector_bits}x{traits.registers}{units}"


def thread_count(target: Target) -> int:
    """CPU threads that a plan for `target` is made for; one for a GPU."""
    if is_cuda(target):
        return 1
    return int(target.attrs.get("num-cores", available_cpus()))


def _features(target: Target) -> frozenset[str]:
    from tvm.target import codegen

    return frozenset(map(str, codegen.llvm_get_cpu_features(target)))


def _full_width_attributes(target: Target) -> list[str]:
    """LLVM halves 512-bit vectors on Intel servers unless told otherwise, and with them the register tile."""
    features = _features(target)
    return ["-prefer-256-bit"] if "avx512f" in features and "prefer-256-bit" in features else []


@functools.cache
def _linux_cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


@functools.cache
def _linux_caches() -> dict[int, int]:
    found = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                found[int(level)] = int(size.rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return found
