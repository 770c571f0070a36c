"""Plans of gradients of weights for GPUs, run on the CPU thread by thread or on a real GPU, held against the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cuda_checks import BATCH, assert_launchable, default_plans, lowered_on_cpu, placed
from cuda_on_cpu import compile_modules
from cuda_on_cpu.execute import Order
from gradient_cases import operands
from problems import BOUNDS
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import loader
from tvm_conv3d.runtime.compatibility import gpu_target
from tvm_conv3d.spec import FORWARD, WEIGHT_GRADIENT, Conv3DSpec
from tvm_conv3d.target.resolve import resolve
from tvm_conv3d.tuning.gpu_kernel import GpuKernel

#: What kernels read, or what they fill, by name.
Arrays = Mapping[str, np.ndarray]


def gradient_plans(specs: Iterable[Conv3DSpec], target: str = "cuda:sm_80") -> list[Plan]:
    """The default plans of the weights' gradients of forward problems."""
    return default_plans([replace(spec, direction=WEIGHT_GRADIENT, post_ops=()) for spec in specs], target)


def read_by(plan: Plan) -> Arrays:
    """Random input and gradient of the output."""
    x, _, gradient = operands(replace(plan.spec, direction=FORWARD))
    return {"x": x, "gradient": gradient}


def assert_gradients_right(
    plans: Sequence[Plan], target: str = "cuda:sm_80", order: Order = "forward", machine: str = "cpu"
) -> None:
    """As :func:`cuda_checks.assert_right`."""
    wrong = []
    for start in range(0, len(plans), BATCH):
        few = plans[start : start + BATCH]
        inputs = [read_by(plan) for plan in few]
        for plan, given, found in zip(few, inputs, gradients(few, inputs, target, order, machine), strict=True):
            error = relative_error(plan, given, found)
            if not error < BOUNDS[plan.spec.dtype]:
                wrong.append(f"{error:.1e} {plan.spec.key()} {plan.describe()}")
    assert not wrong, "\n".join(wrong)


def relative_error(plan: Plan, given: Arrays, found: Arrays) -> float:
    """The larger error of the weights' gradient and, relative to what is added up, of the bias's."""
    of_weights, of_bias = oracle.weight_gradient(plan.spec, given["x"], given["gradient"])
    error = oracle.relative_error(found["out"], of_weights)
    if not plan.spec.bias:
        return error
    added = np.abs(given["gradient"].astype(np.float64)).sum()
    return max(error, float(np.abs(found["bias_gradient"].astype(np.float64) - of_bias).max() / added))


def gradients(
    plans: Sequence[Plan],
    inputs: Sequence[Arrays],
    target: str = "cuda:sm_80",
    order: Order = "forward",
    machine: str = "cpu",
) -> Iterator[dict[str, np.ndarray]]:
    """The results of each plan, in the shapes and types of weights and bias."""
    results = _on_gpu(plans, inputs) if machine == "gpu" else _on_cpu(plans, inputs, target, order)
    for plan, given, found in zip(plans, inputs, results, strict=True):
        yield {
            name: np.asarray(found[name]).view(given["x"].dtype).reshape(shape) for name, shape in _filled(plan).items()
        }


def _filled(plan: Plan) -> dict[str, tuple[int, ...]]:
    spec = plan.spec
    return {"out": spec.kernel_shape, **({"bias_gradient": (spec.filters,)} if spec.bias else {})}


def _on_cpu(plans: Sequence[Plan], inputs: Sequence[Arrays], target: str, order: Order) -> Iterator[Arrays]:
    resolved = resolve(target, 1)
    lowered = [lowered_on_cpu(scheduling.scheduled_module(plan, resolved), resolved) for plan in plans]
    for plan, given, compiled in zip(plans, inputs, compile_modules(lowered), strict=True):
        for launch in compiled.lowered.launches:
            assert_launchable(plan, launch.grid, launch.block)
        report = compiled.run(placed(given, compiled.lowered.parameters), order)
        report.check()
        yield report.buffers


def _on_gpu(plans: Sequence[Plan], inputs: Sequence[Arrays]) -> Iterator[Arrays]:
    for plan, given in zip(plans, inputs, strict=True):
        results = {name: np.full(shape, np.nan, given["x"].dtype) for name, shape in _filled(plan).items()}
        call = GpuKernel.of(loader.link(build.compile_plan(plan, gpu_target(0))), {**given, **results}, {})
        call()
        call.fetch(results)
        yield results
