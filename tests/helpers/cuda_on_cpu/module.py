"""The whole way: scheduled functions, lowered, compiled in batches, run on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from cuda_on_cpu.compile import Program, compile_sources
from cuda_on_cpu.execute import Order, run_program
from cuda_on_cpu.lower import GlobalBuffer, LoweredModule, lower_module
from cuda_on_cpu.report import Array, Report


@dataclass(frozen=True)
class CompiledModule:
    """A lowered function and its kernels, ready to run any number of times."""

    lowered: LoweredModule
    program: Program

    def run(self, arrays: Sequence[Array | None], order: Order = "forward", timeout: float = 120.0) -> Report:
        """Run on copies of the arrays, in the order of the function's parameters; None begins as NaN (0xFF bytes).

        Raises:
            ValueError: arrays that do not fit the parameters, or an unknown order.
        """
        parameters = self.lowered.parameters
        if len(arrays) != len(parameters):
            raise ValueError(f"the function has {len(parameters)} parameters. Received: {len(arrays)} arrays")
        buffers = {p.name: _fit(p, array) for p, array in zip(parameters, arrays, strict=True)}
        buffers |= {w.name: _fit(w, None) for w in self.lowered.workspaces}
        report = run_program(self.program, self.lowered.launches, buffers, order, timeout)
        return Report(report.faults, report.buffers, [report.buffers[p.name] for p in parameters])


def compile_modules(modules: Sequence[LoweredModule]) -> list[CompiledModule]:
    """Compile many lowered functions in one call of g++.

    Raises:
        UnsupportedKernelError: a source has something that this tool does not know.
    """
    programs = compile_sources([module.source for module in modules])
    return [CompiledModule(module, program) for module, program in zip(modules, programs, strict=True)]


def run_module(
    module: Any, target: Any, arrays: Sequence[Array | None], order: Order = "forward", timeout: float = 120.0
) -> Report:
    """Lower, compile and run one scheduled function: a PrimFunc, or an IRModule with one function.

    Raises:
        UnsupportedKernelError: the source has something that this tool does not know.
        ValueError: arrays that do not fit the parameters, or an unknown order.
    """
    (compiled,) = compile_modules([lower_module(module, target)])
    return compiled.run(arrays, order, timeout)


def _fit(buffer: GlobalBuffer, array: Array | None) -> Array:
    dtype = np.dtype(ml_dtypes.bfloat16 if buffer.dtype == "bfloat16" else buffer.dtype)
    if array is None:
        return np.full((*buffer.shape, dtype.itemsize), 0xFF, np.uint8).view(dtype)[..., 0]
    if array.shape != buffer.shape or array.dtype != dtype:
        raise ValueError(
            f"{buffer.name} is an array of shape {buffer.shape} and dtype {buffer.dtype}. "
            f"Received: shape {array.shape} and dtype {array.dtype}"
        )
    return np.ascontiguousarray(array)
