"""From a plan to the function that is compiled.

Modules of `compute` and `schedules` import TVM, which takes a second, and so are imported where a plan asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm_conv3d.compute.shared.argument import PACK, ROLES, Argument
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules.decisions import Decisions
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.description import Target

if TYPE_CHECKING:
    from tvm import IRModule
    from tvm.s_tir import Schedule


def schedule(plan: Plan) -> tuple[Schedule, Decisions]:
    """The plan's declaration with its loops, and the decisions as the design space makes them of the plan's.

    Tiles that are too large, or do not divide, become smaller.

    Raises:
        ValueError: there is no algorithm of that name.
    """
    from tvm.s_tir import Schedule

    algorithm = named(plan.algorithm)
    scheduled = Schedule(algorithm.declare(plan.spec, plan.variant).module())
    decisions = Decisions(scheduled, plan.decisions)
    algorithm.apply(scheduled, plan.spec, plan.variant, decisions)
    return scheduled, decisions


def scheduled_module(plan: Plan, target: Target) -> IRModule:
    """The plan's declaration with its loops, ready to compile.

    Raises:
        ValueError: the plan's algorithm is unknown, or for another kind of target.
    """
    family = named(plan.algorithm).family
    if family.kind != target.kind:
        raise ValueError(
            f"The algorithm {plan.algorithm!r} is for targets of the kind {family.kind}. Received: target={target}"
        )
    return family.finished(schedule(plan)[0].mod)


def packing_module(plan: Plan) -> IRModule:
    """The function `pack` of the plan's algorithm with its loops, ready to compile."""
    return named(plan.algorithm).packing(plan.spec, plan.variant)


def packing_arguments(module: IRModule) -> tuple[Argument, ...]:
    """What the function of :func:`packing_module` takes."""
    found = []
    for parameter in module[PACK].params:
        name, shape = str(parameter.name), tuple(int(extent) for extent in parameter.ty.shape)
        found.append(Argument(name, ROLES[name], shape, str(parameter.ty.dtype)))
    return tuple(found)


def lowered_module(module: IRModule, target: Target) -> IRModule:
    """A scheduled function as TVM's compiler takes it."""
    return module if is_cuda(target) else lowered(with_small_buffers(module), target)[0]


def with_small_buffers(module: IRModule) -> IRModule:
    """A CPU's scheduled function with each buffer as small as its use allows."""
    from tvm_conv3d.schedules.llvm.passes import lower_to_loops

    return lower_to_loops.to_small_buffers(module)


def lowered(small: IRModule, target: Target) -> tuple[IRModule, Sequence[str]]:
    """A function of :func:`with_small_buffers` as TVM's compiler takes it.

    Returns:
        The function, and the names of TVM's passes that it need not go through again.
    """
    from tvm_conv3d.schedules.llvm.passes import lower_to_loops, pipeline

    module = pipeline.lowered(small, target)
    # in plain loops the passes find what they did not see in blocks
    return module, lower_to_loops.DONE if module is small else ()
