"""Runs code that is compiled for ARM on this CPU, by qemu, and checks what it touches (see README.md)."""

from arm_on_cpu.execute import ArmError, Call, Pointer, Tensor, run
from arm_on_cpu.machines import GENERIC, MACHINES, NEON, SVE_256, SVE_512, Machine
from arm_on_cpu.stand_in import this_machine_is
from arm_on_cpu.toolchain import Program, link, missing

__all__ = [
    "GENERIC",
    "MACHINES",
    "NEON",
    "SVE_256",
    "SVE_512",
    "ArmError",
    "Call",
    "Machine",
    "Pointer",
    "Program",
    "Tensor",
    "link",
    "missing",
    "run",
    "this_machine_is",
]
