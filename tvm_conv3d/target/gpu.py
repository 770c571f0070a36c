"""The GPU architectures that code is made for, and their limits.

Limits are those of the CUDA C++ Programming Guide, "Compute Capabilities" (CUDA 13). The number of multiprocessors is
that of the architecture's usual card, and only decides how small the default tiles get.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tvm_conv3d.target.cpu import made_of
from tvm_conv3d.target.description import Target


@dataclass(frozen=True)
class GpuTraits:
    """What a schedule has to know of a GPU.

    Attributes:
        arch: compute capability as a number, 90 for 9.0.
        multiprocessors: of the usual card.
        shared_per_multiprocessor: bytes of shared memory.
        threads_per_multiprocessor, blocks_per_multiprocessor: resident at once, at most.
        teraflops: published peak of float32 outside of tensor cores, of the usual card.
        tensor_teraflops: published dense peak of float16 with float32 sums on tensor cores.
        gigabytes: published memory bandwidth per second.
        card: the usual card.
        shared_opt_in: bytes of shared memory that a block gets at most, once its kernel asked for them.
        gigahertz: published boost clock of the usual card.
        threads_per_block, shared_per_block: limits of a launch; the latter of shared memory that nobody asked for.
        registers: of a multiprocessor, 32 bits each.
    """

    arch: int
    multiprocessors: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    teraflops: float
    tensor_teraflops: float
    gigabytes: float
    card: str
    shared_opt_in: int
    gigahertz: float
    threads_per_block: int = 1024
    shared_per_block: int = 48 << 10
    registers: int = 64 << 10

    @property
    def name(self) -> str:
        """As compilers write it."""
        return f"sm_{self.arch}"

    def has_tensor_cores(self, dtype: str) -> bool:
        """Whether tensor cores multiply this type with float32 sums by the instructions that are used here."""
        return dtype in ("float16", "bfloat16") and self.arch >= 80


ARCHITECTURES: Mapping[str, GpuTraits] = {
    traits.name: traits
    for traits in (
        GpuTraits(75, 40, 64 << 10, 1024, 16, 8.1, 65.0, 320, "T4", 64 << 10, 1.59),
        GpuTraits(80, 108, 164 << 10, 2048, 32, 19.5, 312.0, 1555, "A100", 163 << 10, 1.41),
        GpuTraits(86, 84, 100 << 10, 1536, 16, 38.7, 155.0, 768, "RTX A6000", 99 << 10, 1.80),
        GpuTraits(89, 142, 100 << 10, 1536, 24, 91.6, 362.0, 864, "L40S", 99 << 10, 2.52),
        GpuTraits(90, 132, 228 << 10, 2048, 32, 66.9, 989.0, 3350, "H100 SXM", 227 << 10, 1.98),
    )
}


def cuda_target(arch: str) -> Target:
    """The target of an architecture, such as "sm_90".

    Raises:
        ValueError: the architecture is unknown.
    """
    return _target_of(known(arch))


@functools.cache
def _target_of(traits: GpuTraits) -> Target:
    config = {
        "kind": "cuda",
        "arch": traits.name,
        "max_threads_per_block": traits.threads_per_block,
        "max_num_threads": traits.threads_per_block,
        "max_shared_memory_per_block": traits.shared_per_block,
        "thread_warp_size": 32,
        # only read for its launches, and never compiled for the user's CPU
        "host": {"kind": "llvm"},
    }
    return made_of(config)


def gpu_traits(target: Target) -> GpuTraits:
    """Facts of `target`.

    Raises:
        ValueError: its architecture is none of those that code is made for.
    """
    return known(target.arch)


def nearest(capability: int) -> GpuTraits:
    """The architecture whose code runs on a device of this compute capability.

    Raises:
        ValueError: there is none.
    """
    fitting = [traits for traits in ARCHITECTURES.values() if traits.arch <= capability]
    # code for 8.0 runs on 8.6, but not on 9.0
    same = [traits for traits in fitting if traits.arch // 10 == capability // 10]
    if not same:
        raise ValueError(
            f"There is no code for GPUs of compute capability {capability / 10:.1f}. "
            f"Supported: {', '.join(ARCHITECTURES)}"
        )
    return max(same, key=lambda traits: traits.arch)


def known(arch: str) -> GpuTraits:
    """The architecture of this name, such as "sm_90".

    Raises:
        ValueError: there is none.
    """
    if arch not in ARCHITECTURES:
        spelled = re.sub(r"^(sm_?)?", "sm_", arch)
        hint = f" Do you mean cuda:{spelled}?" if spelled in ARCHITECTURES else ""
        raise ValueError(
            f"The architecture of a CUDA target must be one of {', '.join(ARCHITECTURES)}, as in cuda:sm_90. "
            f"Received: {arch!r}.{hint}"
        )
    return ARCHITECTURES[arch]
