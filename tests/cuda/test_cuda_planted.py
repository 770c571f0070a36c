"""Faults planted in the schedules of convolutions: the tool that runs them on the CPU finds each, in every order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda_checks import default_plans, in_order, lowered_on_cpu, placed
from cuda_gradients import gradient_plans, read_by
from cuda_on_cpu import Report, compile_modules, run_program, without_barrier
from cuda_on_cpu.compile import compile_kernels
from cuda_on_cpu.execute import Order
from problems import data
from tvm_conv3d.compute.cuda.winograd_gemm import WinogradGemmVariant
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve, traits_of

TARGET = resolve("cuda:sm_80", 1)

BASE = Conv3DSpec(1, (3, 4, 5), 32, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3)

_WINOGRAD = WinogradGemmVariant("ppp", (1, 2, 2), 32, 32, 8, 8, 8)

ORDERS: list[Order] = ["forward", "reverse", ("shuffled", 3)]

#: What brings a matrix into shared memory: names of its block, and where among the block's axes the row stands.
ROWS = {"kernel_shared": -2, "gradients": -3}

every_order = pytest.mark.parametrize("order", ORDERS, ids=str)


def plan_of(algorithm: str) -> Plan:
    if algorithm == "winograd_gemm":
        return Plan(BASE, algorithm, _WINOGRAD, {})
    if algorithm.startswith("weight_gradient"):
        (plan,) = gradient_plans([replace(BASE, groups=8 if algorithm == "weight_gradient_window" else 1)])
        variant = algorithms("cuda")[algorithm].variants(plan.spec, traits_of(TARGET))[0]
        return Plan(plan.spec, algorithm, variant, {})
    changes: dict[str, Any] = {"window": {"filters": 4}, "tensor_gemm": {"dtype": "float16"}}.get(algorithm, {})
    (plan,) = default_plans([replace(BASE, **changes)])
    assert plan.algorithm == algorithm
    # with copies that run ahead: tests of their own
    return replace(plan, variant=replace(plan.variant, stages=1)) if algorithm == "tensor_gemm" else plan


def run(plan: Plan, change: Callable[[Any], Any] | None, order: Order, barrier: int = 0) -> Report:
    """What the tool finds in a plan's kernels, after `change` of their schedule or without one of their barriers."""
    module = scheduling.scheduled_module(plan, TARGET)
    (code,) = compile_modules([lowered_on_cpu(module if change is None else change(module), TARGET)])
    parameters = code.lowered.parameters
    gradient = plan.algorithm.startswith("weight_gradient")
    given = placed(read_by(plan), parameters) if gradient else in_order(plan, data(plan.spec), parameters)
    if not barrier:
        return code.run(given, order)
    lowered = code.lowered
    program = compile_kernels(without_barrier(lowered.source, barrier))
    buffers = {
        b.name: np.zeros(b.shape, b.dtype) if array is None else array
        for b, array in zip((*lowered.parameters, *lowered.workspaces), given + [None] * 9, strict=False)
    }
    return run_program(program, lowered.launches, buffers, order)


def rewritten(module: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`module` with each node of this kind changed."""
    import tvm_ffi
    from tvm import IRModule

    main = module["main"]
    return IRModule({"main": main.with_body(tvm_ffi.structural_map(main.body, (kind, change)))})


def without_guards(module: Any) -> Any:
    """Reads the input's padding as if it lay in memory."""
    from tvm.ir import Call

    return rewritten(module, Call, lambda call: call.args[1] if call.op.name == "prim.if_then_else" else call)


def with_a_row_skipped(module: Any) -> Any:
    """Brings all rows of the weights, or of the output's gradient, into shared memory but one."""
    from tvm.s_tir import SBlockRealize

    def changed(realize: Any) -> Any:
        rows = [axis for name, axis in ROWS.items() if realize.block.name_hint.startswith(name)]
        if not rows:
            return realize
        return SBlockRealize(realize.iter_values, realize.iter_values[rows[0]] != 3, realize.block)

    return rewritten(module, SBlockRealize, changed)


def with_two_rows_in_one_place(module: Any) -> Any:
    """Brings each second row of these to the place of the one before."""
    from tvm.tirx import BufferStore

    def changed(store: Any) -> Any:
        rows = [axis for name, axis in ROWS.items() if store.buffer.name.startswith(name)]
        if not rows:
            return store
        indices = list(store.indices)
        indices[rows[0]] = indices[rows[0]] // 2 * 2
        return BufferStore(store.buffer, store.value, indices)

    return rewritten(module, BufferStore, changed)


@pytest.mark.parametrize("algorithm", sorted(algorithms("cuda")))
@every_order
def test_a_padding_that_is_not_guarded(algorithm: str, order: Order) -> None:
    plan = plan_of(algorithm)
    run(plan, None, order).check()
    report = run(plan, without_guards, order)
    assert "out-of-bounds" in report.kinds
    assert "x" in {fault.buffer for fault in report.faults}


@pytest.mark.parametrize("algorithm", ["gemm", "tensor_gemm", "winograd_gemm", "weight_gradient_gemm"])
@every_order
def test_a_row_of_weights_that_nobody_brings(algorithm: str, order: Order) -> None:
    report = run(plan_of(algorithm), with_a_row_skipped, order)
    assert report.kinds == {"unwritten"}
    # dynamic shared memory is one array
    assert {fault.buffer for fault in report.faults} <= {"kernel_shared", "gradients_shared", "buf_dyn_shmem"}


@pytest.mark.parametrize("algorithm", ["gemm", "tensor_gemm", "winograd_gemm", "weight_gradient_gemm"])
@every_order
def test_two_threads_that_write_to_one_place(algorithm: str, order: Order) -> None:
    report = run(plan_of(algorithm), with_two_rows_in_one_place, order)
    assert report.kinds >= {"race", "unwritten"}


@pytest.mark.parametrize("algorithm", ["gemm", "tensor_gemm", "winograd_gemm", "weight_gradient_gemm"])
@every_order
def test_every_barrier_is_needed(algorithm: str, order: Order) -> None:
    plan = plan_of(algorithm)
    source = lowered_on_cpu(scheduling.scheduled_module(plan, TARGET), TARGET).source
    barriers = source.count("__syncthreads();")
    assert barriers >= 2
    for number in range(1, barriers + 1):
        assert "race" in run(plan, None, order, number).kinds, number
