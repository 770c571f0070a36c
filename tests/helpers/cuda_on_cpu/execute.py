"""Launches of compiled kernels, run by the machine in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cuda_on_cpu.compile import Program, machine, workspace
from cuda_on_cpu.report import Array, Fault, Report

Order = str | tuple[str, int]
_PAGE = 65536  # buffers are mapped one by one; no page is larger than this


@dataclass(frozen=True)
class Launch:
    """``kernel<<<grid, block, dynamic_shared_bytes>>>(arguments...)``; the arguments are names of buffers."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared_bytes: int
    arguments: tuple[str, ...]


def run_program(
    program: Program,
    launches: Sequence[Launch],
    buffers: Mapping[str, Array],
    order: Order = "forward",
    timeout: float = 120.0,
) -> Report:
    """Run launches one after another on copies of the buffers.

    Args:
        program: what `compile_kernels` made of the source.
        launches: the kernels' launches.
        buffers: C-contiguous arrays by name.
        order: ``"forward"``, ``"reverse"`` or ``("shuffled", seed)``: of blocks, and of threads between barriers.
        timeout: seconds; a run that takes longer has the fault ``timeout``.

    Raises:
        ValueError: an unknown order, kernel or buffer, or a wrong number of arguments.
        RuntimeError: the machine itself failed.
    """
    _validate(program, launches, buffers)
    with tempfile.TemporaryDirectory(dir=workspace()) as name:
        folder = Path(name)
        offsets = _write_data(folder / "data", buffers)
        (folder / "request").write_text(_request(folder / "data", program, launches, buffers, offsets, order))
        command = [str(machine()), str(program.library), str(folder / "request")]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
            output, code, errors = result.stdout, result.returncode, result.stderr
        except subprocess.TimeoutExpired as expired:
            printed = expired.stdout or b""  # bytes, although text was asked for
            output, code, errors = printed.decode() if isinstance(printed, bytes) else printed, None, ""
        results = {
            key: np.fromfile(folder / "data", array.dtype, array.size, offset=offset).reshape(array.shape)
            for (key, array), offset in zip(buffers.items(), offsets, strict=True)
        }
    faults = _parse_faults(output)
    kernels = ", ".join(launch.kernel for launch in launches)
    if code is None:
        faults.append(_whole("timeout", kernels, f"not done after {timeout} s"))
    elif code < 0:
        faults.append(_whole("crash", kernels, f"the process was ended by {signal.Signals(-code).name}"))
    elif code > 0:
        raise RuntimeError(f"cuda_on_cpu's machine failed: {errors.strip()}")
    return Report(tuple(faults), results)


def _validate(program: Program, launches: Sequence[Launch], buffers: Mapping[str, Array]) -> None:
    for launch in launches:
        kernel = program.kernels.get(launch.kernel)
        if kernel is None:
            raise ValueError(f"the source has the kernels {sorted(program.kernels)}. Received: {launch.kernel!r}")
        if len(launch.arguments) != len(kernel.parameters):
            raise ValueError(
                f"{launch.kernel} has the parameters {kernel.parameters}. Received the arguments: {launch.arguments}"
            )
        unknown = [name for name in launch.arguments if name not in buffers]
        if unknown:
            raise ValueError(f"arguments must be names of buffers ({sorted(buffers)}). Received: {unknown}")
    for name, array in buffers.items():
        if not re.fullmatch(r"[\w.]{1,200}", name):
            raise ValueError(f"buffers' names are letters, digits, dots and underscores. Received: {name!r}")
        if not array.flags.c_contiguous:
            raise ValueError(f"arrays must be C-contiguous. Received for {name}: strides {array.strides}")


def _write_data(path: Path, buffers: Mapping[str, Array]) -> list[int]:
    offsets, offset = [], 0
    with path.open("wb") as file:
        for array in buffers.values():
            offsets.append(offset)
            file.seek(offset)
            file.write(array.reshape(-1).view(np.uint8).data)
            offset += -(-max(array.nbytes, 1) // _PAGE) * _PAGE
        file.truncate(max(offset, _PAGE))
    return offsets


def _request(
    data: Path,
    program: Program,
    launches: Sequence[Launch],
    buffers: Mapping[str, Array],
    offsets: Sequence[int],
    order: Order,
) -> str:
    lines = [f"data {data} order {' '.join(map(str, _order(order)))}"]
    for (name, array), offset in zip(buffers.items(), offsets, strict=True):
        lines.append(f"buffer {name} {offset} {array.nbytes} {array.itemsize}")
    index = {name: i for i, name in enumerate(buffers)}
    for launch in launches:
        kernel = program.kernels[launch.kernel]
        numbers = (
            *launch.grid,
            *launch.block,
            launch.dynamic_shared_bytes,
            int(kernel.synchronises),
            kernel.granule_bytes,
            len(launch.arguments),
            *(index[name] for name in launch.arguments),
        )
        lines.append(f"launch {launch.kernel} {program.prefix}_{launch.kernel} {' '.join(map(str, numbers))}")
    return "\n".join(lines) + "\n"


def _order(order: Order) -> tuple[str, int]:
    if order in ("forward", "reverse"):
        return str(order), 0
    if isinstance(order, tuple) and len(order) == 2 and order[0] == "shuffled" and 0 <= order[1] < 1 << 63:
        return order
    raise ValueError(f"order must be 'forward', 'reverse' or ('shuffled', seed). Received: {order!r}")


def _parse_faults(output: str) -> list[Fault]:
    faults: list[Fault] = []
    for line in output.splitlines():
        word, *fields = line.split("\t")
        if word == "fault" and len(fields) == 8:
            kind, kernel, buffer, index, block, thread, other, detail = fields
            x, y, z = map(int, block.split(","))
            faults.append(Fault(kind, kernel, buffer, int(index), (x, y, z), int(thread), int(other), detail))
        elif word == "count" and len(fields) == 4:
            same = [i for i, f in enumerate(faults) if (f.kind, f.kernel, f.buffer) == tuple(fields[:3])]
            for i in same:
                faults[i] = replace(faults[i], count=max(faults[i].count, int(fields[3])))
    return faults


def _whole(kind: str, kernels: str, detail: str) -> Fault:
    return Fault(kind, kernels, "", -1, (0, 0, 0), 0, -1, detail)
