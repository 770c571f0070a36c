"""CPUs: what a plan must know of one, read from a TVM target and from the machine."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_conv3d.target import answers, dot_units
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.dot_units import DotUnit

#: Bytes of a core's caches where the system does not tell.
_USUAL_CACHES = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}


#: Bytes of the shared cache that one core can count on: a virtual machine sees all of its host's, and has its part.
_MAX_L3_PER_CORE = 16 << 20


#: CPUs that take two cycles for an operation on 512 bits.
_HALF_WIDTH = ("znver4",)


#: LLVM features that decide the register tile, and the flag by which Linux names each.
_DECISIVE_FEATURES = {"avx512f": "avx512f", "avx2": "avx2", "avx": "avx", "fma": "fma", "f16c": "f16c"}


@dataclass(frozen=True)
class CpuTraits:
    """What a schedule has to know of a CPU.

    Attributes:
        vector_bits: width of the vector registers that are worth using.
        registers: number of those registers.
        cores: threads that run at once.
        l1, l2, l3: bytes of data cache: per core, per core, and of the shared one what `cores` can count on.
        half_width_vector_units: an operation on a whole vector takes as long as two on half a vector.
        dot: its dot-product units, the faster of an element type first.
        microarchitecture: LLVM's name of it, under which its costs were measured; empty where it is not known.
    """

    vector_bits: int
    registers: int
    cores: int
    l1: int
    l2: int
    l3: int
    half_width_vector_units: bool = False
    dot: tuple[DotUnit, ...] = ()
    microarchitecture: str = ""

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
    config: dict[str, Any] = {"kind": "llvm", "num-cores": cores}
    cpu = answers.system_cpu()
    if answers.is_valid_cpu(cpu, answers.system_triple()):
        config["mcpu"] = cpu
    attributes = []
    flags = _linux_cpu_flags()
    if flags:
        promised = features_of(made_of(config))
        hidden = [f for f, flag in _DECISIVE_FEATURES.items() if f in promised and flag not in flags]
        attributes += [f"-{feature}" for feature in (*hidden, *dot_units.hidden(promised, flags))]
    attributes += _full_width_attributes(made_of(config))
    if attributes:
        config["mattr"] = attributes
    return made_of(config)


def made_of(config: Mapping[str, Any]) -> Target:
    """The target that TVM makes of a user's options.

    Raises:
        ValueError: TVM refuses them; other errors of TVM's own.
    """
    # a host may be a target of TVM's
    text = json.dumps(config, sort_keys=True, default=lambda value: json.loads(Target.of_tvm(value).text))
    return Target(answers.exported(text))


def is_cuda(target: Target) -> bool:
    """Whether code for `target` runs on a GPU."""
    return target.kind == "cuda"


def cpu_traits(target: Target) -> CpuTraits:
    """Facts of `target`; cache sizes are this machine's when the system tells them."""
    features = features_of(target)
    bits, registers = 128, 16
    if "avx512f" in features:
        bits, registers = 512, 32
    elif "avx2" in features or "avx" in features:
        bits = 256
    elif "neon" in features:
        registers = 32
    caches = {**_USUAL_CACHES, **_linux_caches()}
    cores = thread_count(target)
    l3 = min(caches[3], cores * _MAX_L3_PER_CORE)
    name = target.cpu
    halves = bits == 512 and name in _HALF_WIDTH
    return CpuTraits(bits, registers, cores, caches[1], caches[2], l3, halves, dot_units.units(features), name)


def thread_count(target: Target) -> int:
    """CPU threads that a plan for `target` is made for; one for a GPU."""
    if is_cuda(target):
        return 1
    return available_cpus() if target.cores is None else target.cores


def features_of(target: Target) -> frozenset[str]:
    """LLVM's names of what a CPU has."""
    return frozenset(answers.features(target.text))


def _full_width_attributes(target: Target) -> list[str]:
    """LLVM halves 512-bit vectors on Intel servers unless told otherwise, and with them the register tile."""
    features = features_of(target)
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
