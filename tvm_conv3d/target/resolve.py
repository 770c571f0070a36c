"""What the code is compiled for: targets of this machine and of others, and the facts that schedules need."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvm_conv3d.target import answers
from tvm_conv3d.target.cpu import (
    _DECISIVE_FEATURES,
    CpuTraits,
    _full_width_attributes,
    cpu_traits,
    host_target,
    is_cuda,
    made_of,
)
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.gpu import GpuTraits, cuda_target, gpu_traits

if TYPE_CHECKING:
    import tvm.target


#: Architectures that code can be made for.
_ARCHITECTURES = ("x86_64", "aarch64", "arm", "riscv64")


def resolve(target: str | Mapping[str, Any] | Target | tvm.target.Target | None, cores: int) -> Target:
    """The target that a user means.

    Args:
        target: None or "llvm" for this machine, a dict such as `{"kind": "llvm", "mcpu": "haswell"}`, "cuda:sm_90" or
            `{"kind": "cuda", "arch": "sm_90"}` for a GPU, or a target, TVM's or one that this function gave.
        cores: threads to plan for where the target does not say.

    Raises:
        ValueError: `target` is something else, or TVM refuses it.
    """
    if target is None or target == "llvm":
        return host_target(cores)
    arch = _cuda_architecture(target)
    if arch is not None:
        return cuda_target(arch)
    if isinstance(target, Mapping):
        found = _made_of_options(target, cores)
    elif isinstance(target, Target):
        found = target
    elif "tvm" in sys.modules and isinstance(target, sys.modules["tvm"].target.Target):
        found = Target.of_tvm(target)
    else:
        raise ValueError(
            '`target` must be None or "llvm" (this machine), "cuda" (its GPU) or "cuda:sm_90", a dict such as '
            f'{{"kind": "llvm", "mcpu": "haswell"}} or a tvm.target.Target. Received: target={target!r}'
        )
    if found.kind == "cuda":
        return cuda_target(found.arch)
    if found.kind != "llvm":
        raise ValueError(f"Only targets of the kinds llvm and cuda are supported. Received: target={found}")
    return found


def _made_of_options(options: Mapping[str, Any], cores: int) -> Target:
    """The target of a user's options.

    Raises:
        ValueError: TVM refuses them, or would crash.
    """
    config = {"num-cores": cores, **options} if options.get("kind") == "llvm" else dict(options)
    _check_config(config)
    try:
        target = made_of(config)
    except Exception as error:
        raise ValueError(f"TVM refuses this target. Received: target={config}. It says: {error}") from error
    extra = _full_width_attributes(target) if target.kind == "llvm" else []
    return made_of({**config, "mattr": [*config.get("mattr", ()), *extra]}) if extra else target


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
    cores = config["num-cores"]
    if not isinstance(cores, int) or cores < 1:
        raise ValueError(f"The target's `num-cores` must be a positive integer. Received: target={dict(config)}")
    triple = str(config.get("mtriple") or answers.system_triple())
    architecture = triple.split("-")[0]
    if not architecture.startswith(_ARCHITECTURES):
        allowed = ", ".join(_ARCHITECTURES)
        raise ValueError(f"The target's architecture must be one of {allowed}. Received: mtriple={triple!r}")
    cpu = str(config.get("mcpu", ""))
    if cpu not in ("", "generic") and not answers.is_valid_cpu(cpu, triple):
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
    name = "-".join(part for part in (target.kind, target.triple.split("-")[0], target.cpu or "generic") if part)
    hidden = sorted(attribute[1:] for attribute in target.attributes if attribute.startswith("-"))
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-no_".join([name, *(h for h in hidden if h in _DECISIVE_FEATURES)]))


@functools.cache
def instruction_set(target: Target, dtype: str = "float32") -> str:
    """What plans for `dtype` depend on, so that they fit targets that share it.

    That is architecture, vector width in bits, number of registers, and the dot-product units that multiply `dtype`,
    if there are some; or the GPU.
    """
    if is_cuda(target):
        return f"cuda-{gpu_traits(target).name}"
    triple = target.triple or answers.system_triple()
    traits = cpu_traits(target)
    units = "".join(f"+{unit.feature}" for unit in traits.dot_units(dtype))
    return f"{triple.split('-')[0]}-{traits.vector_bits}x{traits.registers}{units}"
