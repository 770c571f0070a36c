"""What the code is compiled for: TVM targets of this machine and of others, and the facts that schedules need."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvm_conv3d.target.cpu import (
    _DECISIVE_FEATURES,
    CpuTraits,
    _full_width_attributes,
    cpu_traits,
    host_target,
    is_cuda,
)
from tvm_conv3d.target.gpu import GpuTraits, cuda_target, gpu_traits

if TYPE_CHECKING:
    from tvm.target import Target


#: Architectures that code can be made for.
_ARCHITECTURES = ("x86_64", "aarch64", "arm", "riscv64")


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
