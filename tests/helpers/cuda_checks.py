"""Plans for GPUs, run on the CPU thread by thread or on a real GPU, and compared with the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import packing_oracle
from cuda_on_cpu import compile_modules, lower_module
from cuda_on_cpu.execute import Order
from cuda_on_cpu.lower import GlobalBuffer, LoweredModule
from problems import BOUNDS, data, residual_of
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.cuda.lower import options
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import loader, packing
from tvm_conv3d.runtime.compatibility import gpu_target
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.gpu import gpu_traits
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning.gpu_kernel import GpuKernel

#: Kernels that one call of the compiler takes.
BATCH = 12

#: Input, kernel, bias or None.
Data = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def forward_algorithms() -> set[str]:
    """Names of those that compute convolutions: all but the gradients of weights."""
    return {name for name, algorithm in algorithms("cuda").items() if not algorithm.of_weights}


def default_plans(specs: Iterable[Conv3DSpec], target: str = "cuda:sm_80") -> list[Plan]:
    return [default_plan(spec, resolve(target, 1)) for spec in specs]


def assert_right(
    plans: Sequence[Plan], target: str = "cuda:sm_80", order: Order = "forward", machine: str = "cpu"
) -> None:
    """Each plan's numbers are the oracle's; on the CPU accesses are in bounds, too, and threads do not race.

    Args:
        plans: for `target`.
        target: what is compiled for where it runs on the CPU; on a GPU it is that GPU's own.
        order: of threads, on the CPU.
        machine: "cpu" or "gpu".
    """
    wrong = []
    for start in range(0, len(plans), BATCH):
        few = plans[start : start + BATCH]
        inputs = [data(plan.spec) for plan in few]
        for plan, given, out in zip(few, inputs, compute(few, inputs, target, order, machine), strict=True):
            error = relative_error(plan.spec, out, *given)
            if not error < _bound(plan):
                wrong.append(f"{error:.1e} {plan.spec.key()} {plan.describe()}")
    assert not wrong, "\n".join(wrong)


def compute(
    plans: Sequence[Plan],
    inputs: Sequence[Data],
    target: str = "cuda:sm_80",
    order: Order = "forward",
    machine: str = "cpu",
) -> list[np.ndarray]:
    """The result of each plan on its input, kernel and bias, in the output's shape and type."""
    results = _on_gpu(plans, inputs) if machine == "gpu" else _on_cpu(plans, inputs, target, order)
    return [
        np.asarray(out).view(given[0].dtype).reshape(plan.spec.output_shape)
        for out, given, plan in zip(results, inputs, plans, strict=True)
    ]


def _on_cpu(plans: Sequence[Plan], inputs: Sequence[Data], target: str, order: Order) -> Iterator[np.ndarray]:
    resolved = resolve(target, 1)
    lowered = [lowered_on_cpu(scheduling.scheduled_module(plan, resolved), resolved) for plan in plans]
    for plan, given, compiled in zip(plans, inputs, compile_modules(lowered), strict=True):
        for launch in compiled.lowered.launches:
            assert_launchable(plan, launch.grid, launch.block)
        report = compiled.run(in_order(plan, given, compiled.lowered.parameters), order)
        report.check()
        yield report.buffers["out"]


def lowered_on_cpu(module: Any, target: Any) -> LoweredModule:
    """A scheduled module for the CPU, lowered as for a GPU."""
    from tvm.ir.transform import PassContext

    with PassContext(config=options(module)):
        return lower_module(module, target)


def _on_gpu(plans: Sequence[Plan], inputs: Sequence[Data]) -> Iterator[np.ndarray]:
    target = gpu_target(0)
    for plan, given in zip(plans, inputs, strict=True):
        if plan.algorithm == "tensor_gemm" and not gpu_traits(target).has_tensor_cores(plan.spec.dtype):
            pytest.skip(f"this GPU has no tensor cores for {plan.spec.dtype}")
        out = np.full(plan.spec.output_shape, np.nan, given[0].dtype)
        loaded = loader.link(build.compile_plan(plan, target))
        x, kernel, bias = given
        call = GpuKernel.of(loaded, {"x": x, "out": out}, packing.stored(plan.spec, kernel, bias))
        call()
        call.fetch({"out": out})
        yield out


def _bound(plan: Plan) -> float:
    """That of the type; what other algorithms promise holds of layers with more cells, over which it scatters less."""
    return BOUNDS[plan.spec.dtype] if named(plan.algorithm).exact else 1.5 * plan.error_bound


def assert_launchable(plan: Plan, grid: Sequence[int], block: Sequence[int]) -> None:
    assert np.prod(block) <= 1024, plan
    assert grid[0] < 2**31 and max(grid[1:], default=1) < 2**16, plan


def arguments(plan: Plan, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    """All that the plan's kernels read, by name."""
    packed_kernel, packed_bias = packing_oracle.pack(plan.algorithm, plan.spec, plan.variant, kernel, bias)
    return {
        "x": x,
        "kernel": packed_kernel,
        "bias": packed_bias,
        **({"residual": residual_of(plan.spec)} if plan.spec.residual else {}),
    }


def in_order(plan: Plan, given: Data, parameters: Sequence[GlobalBuffer]) -> list[np.ndarray | None]:
    """The same in the order, shapes and types of the parameters; None for what is written."""
    return placed(arguments(plan, *given), parameters)


def placed(arrays: Mapping[str, np.ndarray], parameters: Sequence[GlobalBuffer]) -> list[np.ndarray | None]:
    """Arrays by the parameters that they are for; None for what is written."""
    return [_bits(arrays[p.name], p) if p.name in arrays else None for p in parameters]


def _bits(array: np.ndarray, parameter: GlobalBuffer) -> np.ndarray:
    """The same memory in the shape and type of the parameter."""
    plain = array.view(np.uint16) if parameter.dtype == "uint16" else array
    return plain.reshape(parameter.shape)


def relative_error(
    spec: Conv3DSpec, out: np.ndarray, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> float:
    expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias), residual_of(spec))
    return oracle.relative_error(out, expected)
