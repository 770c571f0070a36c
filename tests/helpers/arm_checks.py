"""Plans for ARM machines, run on the CPU by qemu, and compared with the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import packing_oracle
from arm_on_cpu import Call, Machine, Tensor, link, run
from problems import BOUNDS, data, numpy_dtype, residual_of
from tvm_conv3d.compute.shared.argument import (
    BIAS,
    FLAGS,
    KERNEL,
    OUT,
    PACK,
    PACKED_BIAS,
    PACKED_KERNEL,
    RESIDUAL,
    Function,
    X,
)
from tvm_conv3d.engine import build
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.artifact import MAIN, Artifact
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.resolve import traits_of


@dataclass(frozen=True)
class Results:
    """What a plan's two functions have written.

    Attributes:
        out: the convolution, in shape and type of the spec.
        kernel, bias: packed.
        trusted: all flags are finite.
    """

    out: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    trusted: bool


def plan_of(name: str, spec: Conv3DSpec, machine: Machine) -> Plan | None:
    """The plan that an algorithm has by default; None where it does not serve the spec."""
    found = algorithms("llvm")[name].default(spec, traits_of(machine.target))
    return None if found is None else Plan(spec, name, *found)


def compiled(plan: Plan, machine: Machine) -> Artifact:
    """The plan's convolution, and its packing beside it."""
    return build.compile_plan(plan, machine.target, with_packing=True)


def execute(
    plan: Plan,
    machine: Machine,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    reverse: bool = False,
    artifact: Artifact | None = None,
) -> Results:
    """Packs and convolves; results begin as NaN, and all arrays lie at the least aligned addresses that they may.

    Args:
        plan: for the machine.
        machine: that stands in.
        x, kernel, bias: as :func:`problems.data` gives them.
        reverse: the last task of a loop over threads comes first.
        artifact: the plan's code; it is compiled where it is not given.

    Raises:
        ArmError: as :func:`arm_on_cpu.run`.
    """
    artifact = artifact or compiled(plan, machine)
    pack, main = artifact.functions[PACK], artifact.functions[MAIN]
    given = {X: x, KERNEL: kernel, BIAS: bias, RESIDUAL: residual_of(plan.spec)}
    buffers = {name: array for name, array in given.items() if array is not None}
    buffers |= {a.name: _unwritten(a.shape, a.dtype) for a in (*pack.of("output"), *main.of("flags"))}
    buffers[OUT] = _unwritten(plan.spec.output_shape, numpy_dtype(plan.spec.dtype))
    of_main = {KERNEL: PACKED_KERNEL, BIAS: PACKED_BIAS}
    calls = [Call(PACK, _tensors(pack, {})), Call(MAIN, _tensors(main, of_main))]
    after = run(link(artifact.object_code, [PACK, MAIN]), machine, calls, buffers, reverse=reverse)
    for name in {X, KERNEL, BIAS, RESIDUAL} & set(buffers):
        assert after[name].tobytes() == buffers[name].tobytes(), f"{name} was written"
    trusted = FLAGS not in after or bool(np.isfinite(after[FLAGS]).all())
    return Results(after[OUT], after[PACKED_KERNEL], after[PACKED_BIAS], trusted)


def assert_right(plan: Plan, machine: Machine, reverse: bool = False, artifact: Artifact | None = None) -> None:
    """Packed weights are those of NumPy's packing, and the result is the oracle's."""
    x, kernel, bias = data(plan.spec)
    results = execute(plan, machine, x, kernel, bias, reverse, artifact)
    expected = packing_oracle.pack(plan.algorithm, plan.spec, plan.variant, kernel, bias)
    exact = named(plan.algorithm).exact
    for found, wanted in zip((results.kernel, results.bias), expected, strict=True):
        bits = wanted.view(np.uint16) if wanted.dtype.name == "bfloat16" else wanted
        if exact:
            np.testing.assert_array_equal(found, bits.reshape(found.shape))
        else:
            np.testing.assert_allclose(found, bits.reshape(found.shape), rtol=1e-6, atol=1e-6)
    right = oracle.finish(plan.spec, oracle.convolve(plan.spec, x, kernel, bias), residual_of(plan.spec))
    error = oracle.relative_error(results.out, right)
    bound = BOUNDS[plan.spec.dtype] if exact else max(BOUNDS[plan.spec.dtype], 1.5 * plan.error_bound)
    assert results.trusted
    assert error < bound, f"{error:.1e} {plan.spec.key()} {plan.describe()}"


def _tensors(function: Function, buffer_of: dict[str, str]) -> list[Tensor]:
    return [Tensor(buffer_of.get(a.name, a.name), a.shape, a.dtype) for a in function.arguments]


def _unwritten(shape: tuple[int, ...], dtype: str | np.dtype) -> np.ndarray:
    """An array of NaN, in all types of numbers with a fraction."""
    kind = np.dtype(dtype)
    return np.full(int(np.prod(shape)) * kind.itemsize, 0xFF, np.uint8).view(kind).reshape(shape)
