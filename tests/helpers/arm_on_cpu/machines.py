"""The ARM machines that are stood in for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import resolve

#: Threads that plans are made for.
CORES = 2


@dataclass(frozen=True)
class Machine:
    """One machine: what code is made for, and what runs it.

    Attributes:
        name: of both, for people.
        mcpu: LLVM's name of the processor; "" where code is for all of the architecture.
        qemu: qemu's name of a processor that has its instructions, and no more where qemu knows such a one.
    """

    name: str
    mcpu: str
    qemu: str

    def __str__(self) -> str:
        return self.name

    @property
    def config(self) -> dict[str, Any]:
        """The target as users write it."""
        config = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
        return {**config, "mcpu": self.mcpu} if self.mcpu else config

    @property
    def target(self) -> Target:
        """The target, for :data:`CORES` threads."""
        return _target_of(self)


@functools.cache
def _target_of(machine: Machine) -> Target:
    return resolve(machine.config, CORES)


GENERIC = Machine("generic", "", "cortex-a53")
#: With arithmetic in float16 and dot products of 8 bits.
NEON = Machine("neon", "neoverse-n1", "neoverse-n1")
#: With SVE, bfloat16 and i8mm: of qemu's processors only the one with everything has these.
SVE_256 = Machine("sve256", "neoverse-v1", "max,sve256=on,sve512=off")
SVE_512 = Machine("sve512", "a64fx", "a64fx")

MACHINES = (GENERIC, NEON, SVE_256, SVE_512)
