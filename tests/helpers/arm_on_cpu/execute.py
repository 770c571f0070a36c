"""Calls of compiled functions, in a process of qemu's."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm_on_cpu.machines import Machine
from arm_on_cpu.toolchain import Program, qemu, workspace

#: DLPack's codes of kinds of elements.
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}

#: Threads that a loop over threads believes to have: no task count of a usual loop divides by it.
_TASKS = 3


class ArmError(AssertionError):
    """What the code did that it must not, or why it refused its arguments."""


@dataclass(frozen=True)
class Tensor:
    """An argument: a buffer as an array.

    Attributes:
        buffer: its name.
        shape: in elements.
        dtype: as TVM names it.
        offset: bytes of the buffer before it.
    """

    buffer: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0


@dataclass(frozen=True)
class Pointer:
    """An argument: an address in a buffer, so many bytes behind its start."""

    buffer: str
    offset: int = 0


#: What a function takes.
Argument = Tensor | Pointer | int | float | None


@dataclass(frozen=True)
class Call:
    """One call of a function of the program."""

    function: str
    arguments: Sequence[Argument]


def run(
    program: Program,
    machine: Machine,
    calls: Sequence[Call],
    buffers: Mapping[str, np.ndarray],
    alignment: Mapping[str, int] | None = None,
    reverse: bool = False,
    timeout: float = 120.0,
) -> dict[str, np.ndarray]:
    """Runs calls one after another on copies of the buffers, which end where memory may not be touched.

    Args:
        program: of :func:`arm_on_cpu.link`.
        machine: that stands in.
        calls: of its functions.
        buffers: C-contiguous arrays, by name.
        alignment: of a buffer's address in bytes, by name; the size of an element where it is not given.
        reverse: the last task of a loop over threads comes first.
        timeout: seconds.

    Returns:
        The buffers afterwards.

    Raises:
        ArmError: an access outside of buffers, an instruction that the machine has not, an error that a function
            returns, or more seconds than `timeout`.
        RuntimeError: the runner itself failed.
    """
    with tempfile.TemporaryDirectory(dir=workspace()) as name:
        folder = Path(name)
        offsets = _write(folder / "data", buffers)
        head = f"data {folder / 'data'} tasks {_TASKS} reverse {int(reverse)} buffers {len(buffers)}"
        places = [
            f"{offset} {array.nbytes} {(alignment or {}).get(key, array.itemsize)}"
            for offset, (key, array) in zip(offsets, buffers.items(), strict=True)
        ]
        numbers = {key: number for number, key in enumerate(buffers)}
        lines = [head, *places, *(_line(call, program, numbers) for call in calls)]
        (folder / "request").write_text("\n".join(lines) + "\n")
        _execute([str(qemu()), "-cpu", machine.qemu, str(program.path), str(folder / "request")], buffers, timeout)
        contents = (folder / "data").read_bytes()
    return {
        key: np.frombuffer(contents, array.dtype, array.size, offset).reshape(array.shape).copy()
        for offset, (key, array) in zip(offsets, buffers.items(), strict=True)
    }


def _execute(command: Sequence[str], buffers: Mapping[str, np.ndarray], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ArmError(f"timeout: not done after {timeout} s") from None
    names = list(buffers)
    message = re.sub(r"\bbuffer (\d+)", lambda found: names[int(found[1])], done.stderr.strip())
    if done.returncode in (3, 4) or done.returncode < 0:
        raise ArmError(message or f"crash: signal {-done.returncode}")
    if done.returncode:
        raise RuntimeError(f"arm_on_cpu's runner failed: {message}")


def _write(path: Path, buffers: Mapping[str, np.ndarray]) -> list[int]:
    """Contents of all buffers, one behind the other, and where each begins."""
    offsets = []
    with path.open("wb") as file:
        for array in buffers.values():
            file.seek(-(-file.tell() // 64) * 64)
            offsets.append(file.tell())
            file.write(array.tobytes())
    return offsets


def _line(call: Call, program: Program, numbers: Mapping[str, int]) -> str:
    arguments = " ".join(_word(argument, numbers) for argument in call.arguments)
    return f"call {program.functions.index(call.function)} {len(call.arguments)} {arguments}"


def _word(argument: Argument, numbers: Mapping[str, int]) -> str:
    match argument:
        case Tensor(buffer, shape, dtype, offset):
            kind, bits = re.fullmatch(r"([a-z]+?)(\d*)", dtype).groups()  # type: ignore[union-attr]
            extents = " ".join(map(str, shape))
            return f"tensor {numbers[buffer]} {offset} {_CODES[kind]} {bits or 8} {len(shape)} {extents}"
        case Pointer(buffer, offset):
            return f"pointer {numbers[buffer]} {offset}"
        case None:
            return "null"
        case int():
            return f"integer {argument}"
        case float():
            # the words of C for what has no digits
            return f"real {argument.hex() if math.isfinite(argument) else argument}"
