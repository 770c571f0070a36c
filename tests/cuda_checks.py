"""Plans for GPUs, run on the CPU thread by thread or on a real GPU, and compared with the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cuda_on_cpu import compile_modules, lower_module
from problems import BOUNDS, data
from tvm_conv3d import build, reference
from tvm_conv3d.objects import activations
from tvm_conv3d.plan import Plan, algorithm_of, default_plan
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.targets import resolve

#: Kernels that one call of the compiler takes.
BATCH = 12


def default_plans(specs: Iterable[Conv3DSpec], target: str = "cuda:sm_80") -> list[Plan]:
    return [default_plan(spec, resolve(target, 1)) for spec in specs]


def assert_right(plans: Sequence[Plan], target: str = "cuda:sm_80", order: object = "forward") -> None:
    """Each plan's numbers are the oracle's, its accesses are in bounds and its threads do not race."""
    wrong = []
    for start in range(0, len(plans), BATCH):
        few = plans[start : start + BATCH]
        lowered = [lower_module(build.scheduled_module(plan, resolve(target, 1)), resolve(target, 1)) for plan in few]
        for plan, compiled in zip(few, compile_modules(lowered), strict=True):
            for launch in compiled.lowered.launches:
                assert_launchable(plan, launch.grid, launch.block)
            x, kernel, bias = data(plan.spec)
            arrays = arguments(plan, x, kernel, bias)
            fitting = [
                None if a is None else bits(a, p) for a, p in zip(arrays, compiled.lowered.parameters, strict=True)
            ]
            report = compiled.run(fitting, order)
            report.check()
            error = relative_error(plan.spec, report.arrays[3], x, kernel, bias)
            if not error < _bound(plan):
                wrong.append(f"{error:.1e} {plan.spec.key()} {plan.describe()}")
    assert not wrong, "\n".join(wrong)


def _bound(plan: Plan) -> float:
    """That of the type; what other algorithms promise holds of layers with more cells, over which it scatters less."""
    return BOUNDS[plan.spec.dtype] if algorithm_of(plan, "cuda").exact else 1.5 * plan.error_bound


def assert_launchable(plan: Plan, grid: Sequence[int], block: Sequence[int]) -> None:
    assert np.prod(block) <= 1024, plan
    assert grid[0] < 2**31 and max(grid[1:], default=1) < 2**16, plan


def arguments(
    plan: Plan, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
    algorithm = algorithm_of(plan, "cuda")
    packed = algorithm.pack_kernel(plan.spec, plan.variant, kernel), algorithm.pack_bias(plan.spec, plan.variant, bias)
    return x, *packed, None


def bits(array: np.ndarray, parameter: object) -> np.ndarray:
    """The same memory in the shape and type of the parameter."""
    wanted = parameter.dtype  # type: ignore[attr-defined]
    plain = array.view(np.uint16) if wanted == "uint16" else array
    return plain.reshape(parameter.shape)  # type: ignore[attr-defined]


def relative_error(
    spec: Conv3DSpec, out: np.ndarray, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> float:
    result = np.asarray(out).view(x.dtype).reshape(spec.output_shape)
    expected = reference.convolve(spec, x, kernel, bias)
    return reference.relative_error(result, getattr(activations, spec.activation)(expected))
