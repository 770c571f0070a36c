"""What can be told of GPU kernels without a GPU: registers, spills, shared memory, occupancy, bounds of the time."""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm_conv3d.diagnostics.cuda_accesses import WASTEFUL, Access, accesses_of, average
from tvm_conv3d.diagnostics.cuda_lanes import WARP
from tvm_conv3d.diagnostics.cuda_needed import needed_shares
from tvm_conv3d.diagnostics.cuda_sass import NOT_FOUND, Code, disassembled
from tvm_conv3d.diagnostics.cuda_work import Work, works_of
from tvm_conv3d.engine.artifact import MAIN
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.lower import Launch, lower
from tvm_conv3d.engine.cuda.toolkit import Resources
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.engine.scheduling import scheduled_module
from tvm_conv3d.functional.gradient_arguments import data_gradient_of, weight_gradient_of
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.spec import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DATA_GRADIENT,
    DTYPES,
    FORWARD,
    WEIGHT_GRADIENT,
    Conv3DSpec,
)
from tvm_conv3d.target.gpu import ARCHITECTURES, GpuTraits
from tvm_conv3d.target.resolve import resolve

#: Occupancy under which a row says why.
ENOUGH = 0.25

#: Problems of a layer in training, by the direction that is asked for; the layer itself where it is forward.
DIRECTIONS: Mapping[str, Callable[[Conv3DSpec], Conv3DSpec]] = {
    FORWARD: lambda spec: spec,
    DATA_GRADIENT: data_gradient_of,
    WEIGHT_GRADIENT: functools.partial(weight_gradient_of, bias=True),
}

#: Shared memory that the system takes of each block, from compute capability 8.0 on, in bytes.
_RESERVED = 1024


@dataclass(frozen=True)
class Row:
    """One kernel of a default plan on one architecture.

    Attributes:
        layer: its name.
        plan: the default.
        traits: of the architecture.
        resources: by ptxas.
        launch: of the kernel.
        work: of one block.
        resident: blocks that fit on a multiprocessor at once.
        limit: what keeps more from fitting: threads, registers, shared memory or blocks.
        accesses: to shared and global memory.
        code: what the disassembler shows, None without one.
    """

    layer: str
    plan: Plan
    traits: GpuTraits
    resources: Resources
    launch: Launch
    work: Work
    resident: int
    limit: str
    accesses: Sequence[Access] = ()
    code: Code | None = None

    @property
    def threads(self) -> int:
        """Of a block."""
        return math.prod(self.launch.block)

    @property
    def blocks(self) -> int:
        return math.prod(self.launch.grid)

    @property
    def occupancy(self) -> float:
        """Resident threads relative to what the multiprocessor holds."""
        return self.resident * self.threads / self.traits.threads_per_multiprocessor

    @property
    def bounds(self) -> Mapping[str, float]:
        """Seconds under which no call can stay, by what takes them.

        Arithmetic and shared memory are the busiest multiprocessor's, which serves a wavefront a cycle; memory is all
        that is read and written, moved once.
        """
        tensor = self.plan.algorithm == "tensor_gemm"
        peak = 1e12 * (self.traits.tensor_teraflops if tensor else self.traits.teraflops)
        if self.plan.spec.dtype == "float64":
            peak /= 2
        busiest = math.ceil(self.blocks / self.traits.multiprocessors)
        wavefronts = sum(access.found * access.requests for access in self.accesses if access.space == "shared")
        return {
            "tensor cores" if tensor else "FMA": busiest * self.work.flops * self.traits.multiprocessors / peak,
            "shared memory": busiest * wavefronts * -(-self.threads // WARP) / (1e9 * self.traits.gigahertz),
            "memory": self.work.least_bytes / (1e9 * self.traits.gigabytes),
        }

    @property
    def bound(self) -> float:
        """Seconds under which no call can stay: arithmetic of the busiest multiprocessor, or memory traffic."""
        return max(seconds for name, seconds in self.bounds.items() if name != "shared memory")

    @property
    def bound_by(self) -> str:
        """What takes the longest; of shared memory, how many times the next."""
        name = max(self.bounds, key=lambda name: self.bounds[name])
        return f"{name} {self.bounds[name] / self.bound:.1f}x" if name == "shared memory" and self.bound else name

    @property
    def local(self) -> int:
        """Accesses to local memory that cost something; 0 without a disassembler.

        Winograd's last kernel has some, which only a tile with NaN or infinity runs into.
        """
        return 0 if self.code is None or self.work.part == "result" else self.code.local

    @property
    def useful(self) -> float | None:
        """Multiply-adds of the convolution as a share of those computed; None where none is."""
        return 2 * self.plan.spec.macs / (self.blocks * self.work.flops) if self.work.flops else None


def examine(layer: str, spec: Conv3DSpec, arch: str) -> list[Row]:
    """The rows of a layer's default plan, one for each kernel.

    Raises:
        RuntimeError: there is no CUDA compiler, or it refuses the source.
    """
    target = resolve(f"cuda:{arch}", 1)
    plan = default_plan(spec, target)
    code = lower(scheduled_module(plan, target), target)
    cubin, measured = toolkit.compile_measured(code.source, arch)
    shown = disassembled(cubin) or {}
    traits = ARCHITECTURES[arch]
    found = []
    launches = code.functions[MAIN].launches
    shares = needed_shares(plan)
    works = works_of(plan, [math.prod(launch.grid) for launch in launches])
    for launch, work in zip(launches, works, strict=True):
        resources = measured[launch.kernel]
        accesses = accesses_of(launch.kernel, code.kernels[launch.kernel], launch.grid, launch.block, shares)
        resident = resident_blocks(traits, resources, launch)
        known = (layer, plan, traits, resources, launch, work)
        found.append(Row(*known, *resident, accesses, shown.get(launch.kernel)))
    return found


def resident_blocks(traits: GpuTraits, resources: Resources, launch: Launch) -> tuple[int, str]:
    """Blocks that fit on a multiprocessor at once, and what keeps more from it (CUDA's occupancy calculation)."""
    threads = math.prod(launch.block)
    warps = -(-threads // 32)
    # registers are given out to warps, 256 at a time
    of_warp = -(-resources.registers * 32 // 256) * 256
    shared = resources.shared + launch.shared + (_RESERVED if traits.arch >= 80 else 0)
    limits = {
        "threads": traits.threads_per_multiprocessor // (warps * 32),
        "blocks": traits.blocks_per_multiprocessor,
        "registers": traits.registers // of_warp // warps,
        "shared memory": traits.shared_per_multiprocessor // shared if shared else 1 << 30,
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limit


HEADER = (
    "| layer | type | algorithm | tile | regs | spills | shared | threads | blocks | occupancy | MFLOP/block | "
    "KB/block | wavefronts | sectors | products | narrow | stored | useful | bound us | bound by |\n"
    + "|---" * 20
    + "|"
)


def line(row: Row) -> str:
    """The row in a table of Markdown."""
    why = "" if row.occupancy >= ENOUGH else f" ({row.limit})"
    shared = row.resources.shared + row.launch.shared
    cells = (
        row.layer,
        row.plan.spec.dtype,
        f"{row.plan.algorithm} {row.work.part}".strip(),
        _tile(row),
        row.resources.registers,
        row.resources.spills,
        shared,
        row.threads,
        row.blocks,
        f"{row.occupancy:.0%}{why}",
        f"{row.work.flops / 1e6:.2f}",
        f"{row.work.bytes / 1e3:.0f}",
        *(_average(row, space) for space in ("shared", "global")),
        *_machine_code(row.code),
        "" if row.useful is None else f"{row.useful:.0%}",
        f"{1e6 * row.bound:.1f}",
        row.bound_by,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _tile(row: Row) -> str:
    """What a block computes, or a thread of a window, and the parts of its sums."""
    variant: Any = row.plan.variant  # of one of six algorithms
    match row.plan.algorithm:
        case _ if row.work.part.startswith("bias"):
            return ""
        case "window":
            planes = f"{variant.planes}x" if variant.planes > 1 else ""
            tile = f"{planes}{variant.rows}x{variant.columns}"
        case "weight_gradient_window":
            tile = f"{variant.taps} taps x {variant.columns}"
        case "winograd_gemm" if row.work.part != "product":
            tile = "x".join(map(str, variant.tile))
        case _:
            tile = f"{variant.cells}x{variant.filters}"
    parts = getattr(variant, "parts", 1)
    return f"{tile}, {parts} parts" if parts > 1 else tile


def _average(row: Row, space: str) -> str:
    """What a request takes in a kind of memory, and the least; empty where there is none."""
    found = average(row.accesses, space)
    return "" if found is None else f"{found[0]:.1f}/{found[1]:.1f}"


def _machine_code(code: Code | None) -> tuple[str, str, str]:
    """Products for each read of shared memory, narrow loads in the main loop, bytes of stores; dashes where unknown."""
    if code is None:
        return "-", "-", "-"
    products = "" if code.ratio is None else "{} {:.1f}".format(*code.ratio)
    stored = "" if code.stores is None else "..".join(map(str, sorted(set(code.stores))))
    return products, str(code.narrow_loads), stored


def wasteful(found: Iterable[Row]) -> list[str]:
    """A line for each access of these kernels that takes over twice its least."""
    return [
        f"{row.layer} {row.plan.spec.dtype} {row.plan.spec.data_format} {row.traits.name} "
        f"{row.plan.algorithm} {row.launch.kernel}: "
        f"{access.kind} of {access.buffer}, {access.bytes} bytes a thread: {access.found:.1f}/{access.least:.1f} "
        f"{'sectors' if access.space == 'global' else 'wavefronts'}"
        for row in found
        for access in row.accesses
        if access.wasteful
    ]


def rows(
    layers: Iterable[tuple[str, Conv3DSpec]], arch: str, dtypes: Sequence[str], data_formats: Sequence[str] = ()
) -> Iterator[Row]:
    """Of each layer in each type, and in each data format; without these in its own."""
    for name, spec in layers:
        for data_format in data_formats or (spec.data_format,):
            for dtype in dtypes:
                yield from examine(name, replace(spec, dtype=dtype, data_format=data_format), arch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, and what takes over twice its least; tells whether all kernels are as they should be.

    Returns:
        1 where a kernel spills, keeps arrays in local memory, has an access that takes over twice its least, or can't
        be compiled, else 0.
    """
    options = _parser().parse_args(arguments)
    try:
        layers = [(layer.name, layer.spec) for layer in read_csv(options.layers) if options.filter in layer.name]
        found = []
        for arch, direction in itertools.product(options.arch or ("sm_80", "sm_90"), options.direction or (FORWARD,)):
            kernels = arch if direction == FORWARD else f"{direction} on {arch}"
            print(f"\n### {kernels}, bounds for {ARCHITECTURES[arch].card}\n\n{HEADER}")
            directed = [(name, DIRECTIONS[direction](spec)) for name, spec in layers]
            for row in rows(directed, arch, options.dtype or ("float32", "float16"), options.data_format or ()):
                print(line(row), flush=True)
                found.append(row)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cuda_report: {error}", file=sys.stderr)
        return 1
    return _summary(found)


def _summary(found: Sequence[Row]) -> int:
    """Prints what is told of all kernels together; returns the exit status."""
    spilling = sum(row.resources.spills > 0 for row in found)
    sparse = sum(row.occupancy < ENOUGH for row in found)
    narrow = sum(row.code is not None and row.code.narrow_loads > 0 for row in found)
    local = sum(row.local > 0 for row in found)
    print(f"\n{len(found)} kernels, {spilling} with spills, {sparse} with an occupancy under {ENOUGH:.0%}.")
    if any(row.code is None for row in found):
        print(f"Columns of machine code are empty: {NOT_FOUND}.")
    else:
        print(f"{local} with local memory, {narrow} with narrow loads in the main loop.")
    over = wasteful(found)
    print(f"{len(over)} accesses take over {WASTEFUL} times their least{':' if over else '.'}", *over, sep="\n")
    return 1 if spilling or local or over else 0


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description="Static quality of default GPU kernels; needs nvcc or NVRTC, but no GPU."
    )
    found.add_argument(
        "--layers", type=Path, required=True, metavar="FILE.csv", help="layers in the benchmark's columns"
    )
    found.add_argument("--arch", action="append", choices=tuple(ARCHITECTURES), help="may be repeated; default: 80, 90")
    found.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated; default: float32, float16")
    formats = (CHANNELS_LAST, CHANNELS_FIRST)
    found.add_argument("--data-format", action="append", choices=formats, help="may be repeated; default: the layer's")
    told = "what is computed of the layers, a weight gradient with the bias's; may be repeated; default: forward"
    found.add_argument("--direction", action="append", choices=tuple(DIRECTIONS), help=told)
    found.add_argument("--filter", default="", metavar="TEXT", help="only layers with this in their name")
    return found
