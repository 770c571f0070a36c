"""Calls of compiled functions, in a process of qemu's."""

from __future__ import annotations

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
        numbers = {key: number for number, key in enumerate(buffers)}
        request = [_TASKS, int(reverse), len(buffers), len(calls)]
        for offset, (key, array) in zip(offsets, buffers.items(), strict=True):
            request += [offset, array.nbytes, (alignment or {}).get(key, array.itemsize)]
        for call in calls:
            request += [program.functions.index(call.function), len(call.arguments)]
            request += [value for argument in call.arguments for value in _numbers(argument, numbers)]
        (folder / "request").write_bytes(np.array(request, np.int64).tobytes())
        files = [str(folder / name) for name in ("request", "data")]
        _execute([str(qemu()), "-cpu", machine.qemu, str(program.path), *files], buffers, timeout)
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


def _numbers(argument: Argument, numbers: Mapping[str, int]) -> list[int]:
    """An argument as the runner reads it; its kind is the first."""
    match argument:
        case Tensor(buffer, shape, dtype, offset):
            kind, bits = re.fullmatch(r"([a-z]+?)(\d*)", dtype).groups()  # type: ignore[union-attr]
            return [0, numbers[buffer], offset, _CODES[kind], int(bits or 8), len(shape), *shape]
        case Pointer(buffer, offset):
            return [1, numbers[buffer], offset]
        case None:
            return [2]
        case int():
            return [3, argument]
        case float():
            return [4, int(np.float64(argument).view(np.int64))]
