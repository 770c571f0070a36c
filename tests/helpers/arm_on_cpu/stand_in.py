"""This package on an ARM machine: planned and compiled for it, and each call of compiled code made there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from arm_on_cpu.execute import Argument, Call, Pointer, Tensor, run
from arm_on_cpu.machines import Machine
from arm_on_cpu.toolchain import link
from tvm_conv3d.functional import normalization
from tvm_conv3d.runtime import (
    compatibility,
    concatenation,
    conversion,
    executor,
    gathered,
    helper_code,
    loader,
    nonfinite,
    parallel,
)
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target import resolve
from tvm_conv3d.target.description import Target

#: Loaded code of this machine that these keep by what it does, not by its target.
_KEPT = (
    concatenation._code,
    conversion._compiled,
    gathered._code,
    nonfinite._code,
    nonfinite._code_of,
    normalization._code,
    normalization._moments_code,
)

#: Bytes of a cache line: no code asks for a greater alignment.
_LINE = 64

#: Kernels that are kept at once.
_MAX_LOADED = 64


@dataclass
class _Memory:
    """What lies behind addresses that compiled code is given without a size.

    Attributes:
        arrays: an address, and where the elements begin and end that are reached from it.
    """

    arrays: dict[int, tuple[int, int]] = field(default_factory=dict)

    def note(self, array: np.ndarray) -> None:
        """Remembers an array under the address of its first element."""
        self.arrays[array.__array_interface__["data"][0]] = np.lib.array_utils.byte_bounds(array)

    def of(self, argument: Any) -> tuple[int, int, int]:
        """The address of a tensor or pointer, and where its elements begin and end."""
        if isinstance(argument, ctypes.c_void_p):
            address = argument.value or 0
            return (address, *self.arrays[address])
        address, size = argument.data_ptr(), int(np.prod(argument.shape)) * _item_bytes(argument)
        return address, address, address + size


@contextmanager
def this_machine_is(machine: Machine, reverse: bool = False) -> Iterator[None]:
    """Within it, calls of this package are planned and compiled for `machine`, and their code runs there.

    Executors that were made before know the machine of then.

    Args:
        machine: that stands in.
        reverse: the last task of a loop over threads comes first.
    """

    def host_target(cores: int) -> Target:
        return resolve.resolve(machine.config, cores)

    memory = _Memory()
    pointers, address_of = helper_code.pointers, ctypes.addressof

    def noted_pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
        for array in arrays:
            memory.note(array)
        return pointers(*arrays)

    def noted_address(value: Any) -> int:
        address = address_of(value)
        memory.arrays[address] = (address, address + ctypes.sizeof(value))
        return address

    with pytest.MonkeyPatch.context() as patch:
        for module in (compatibility, helper_code, resolve):
            patch.setattr(module, "host_target", host_target)
        patch.setattr(executor, "check_runs_here", lambda *_: None)
        patch.setattr(helper_code, "pointers", noted_pointers)
        patch.setattr(ctypes, "addressof", noted_address)
        patch.setattr(parallel, "link", lambda code: _Module(code, machine, memory, reverse))
        # what is loaded here must not serve the next machine
        patch.setattr(helper_code, "_modules", {})
        patch.setattr(loader, "_loaded", Recent(_MAX_LOADED))
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    for kept in _KEPT:
        kept.cache_clear()


@dataclass(frozen=True)
class _Module:
    """Stands in for a module that TVM has loaded."""

    code: bytes
    machine: Machine
    memory: _Memory
    reverse: bool

    def get_function(self, name: str) -> _Function:
        """The function of this name, which is looked for when it is called."""
        return _Function(self, name)


@dataclass(frozen=True)
class _Function:
    """Stands in for a function of it: takes tensors, pointers and numbers, and writes where those point."""

    module: _Module
    name: str

    def __call__(self, *arguments: Any) -> None:
        memory, machine = self.module.memory, self.module.machine
        places = {i: memory.of(a) for i, a in enumerate(arguments) if not isinstance(a, (int, float))}
        ranges = _joined([place[1:] for place in places.values()])
        before = {str(i): _bytes(*each) for i, each in enumerate(ranges)}
        given = [
            _argument(argument, places[i], ranges) if i in places else argument for i, argument in enumerate(arguments)
        ]
        alignment = {str(i): min(_LINE, start & -start or _LINE) for i, (start, _) in enumerate(ranges)}
        program = link(self.module.code, [self.name])
        after = run(program, machine, [Call(self.name, given)], before, alignment, self.module.reverse)
        for (start, _), old, new in zip(ranges, before.values(), after.values(), strict=True):
            # what is only read may lie where nobody may write
            if not np.array_equal(old, new):
                ctypes.memmove(start, new.tobytes(), new.nbytes)


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of memory, those that share some as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and (start < found[-1][1] or (start, end) == found[-1]):
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _argument(argument: Any, place: tuple[int, int, int], ranges: Sequence[tuple[int, int]]) -> Argument:
    address, begin, end = place
    number = next(i for i, (start, stop) in enumerate(ranges) if start <= begin and end <= stop)
    offset = address - ranges[number][0]
    if isinstance(argument, ctypes.c_void_p):
        return Pointer(str(number), offset)
    return Tensor(str(number), tuple(map(int, argument.shape)), str(argument.dtype), offset)


def _bytes(start: int, end: int) -> np.ndarray:
    return np.frombuffer(ctypes.string_at(start, end - start), np.uint8)


def _item_bytes(tensor: Any) -> int:
    return (int(tensor.dtype.bits) + 7) // 8
