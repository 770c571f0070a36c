"""Runs the CUDA source that TVM generates on the CPU, and checks every access (see README.md)."""

from cuda_on_cpu.compile import Program, compile_kernels, compile_sources, gxx
from cuda_on_cpu.execute import Launch, run_program
from cuda_on_cpu.lower import LoweredModule, lower_module
from cuda_on_cpu.module import CompiledModule, compile_modules, run_module
from cuda_on_cpu.report import Fault, Report
from cuda_on_cpu.rewrite import UnsupportedKernelError, without_barrier

__all__ = [
    "CompiledModule",
    "Fault",
    "Launch",
    "LoweredModule",
    "Program",
    "Report",
    "UnsupportedKernelError",
    "compile_kernels",
    "compile_modules",
    "compile_sources",
    "gxx",
    "lower_module",
    "run_module",
    "run_program",
    "without_barrier",
]
