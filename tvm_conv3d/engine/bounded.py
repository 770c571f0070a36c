"""Plans of one problem that pack fewer weights than the fastest, and take longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import DEFAULT_LIMIT, bytes_per_thread, make_plan, priced_defaults
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.resolve import traits_of

if TYPE_CHECKING:
    from tvm.target import Target

#: Bytes of packed weights below which there is nothing to gain.
_MIN_BYTES = 4 << 20


class Candidate(NamedTuple):
    """A plan, its estimated time, comparable on one target, and the bytes of its packed weights."""

    plan: Plan
    cost: float
    packed_bytes: int


def candidates(spec: Conv3DSpec, target: Target, workspace_limit: int = DEFAULT_LIMIT) -> list[Candidate]:
    """The plan that :func:`tvm_conv3d.engine.planner.make_plan` makes, then those that pack fewer and fewer weights.

    Each next one is the fastest of its size by the cost model. On GPUs there is the first alone.

    Args:
        spec: the problem.
        target: what to compile for.
        workspace_limit: bytes that a plan's intermediates may take for each thread.

    Raises:
        ValueError: no algorithm takes the spec, or none within the limit.
    """
    traits = traits_of(target)
    first = make_plan(spec, target, workspace_limit=workspace_limit)
    algorithm = named(first.algorithm)
    cost = algorithm.cost(spec, traits, first.variant, first.decisions)
    found = [Candidate(first, cost, algorithm.packed_bytes(spec, first.variant))]
    if is_cuda(target) or found[0].packed_bytes < _MIN_BYTES:
        return found
    others = priced_defaults(spec, target)
    for algorithm in algorithms(str(target.kind.name)).values():
        for choice in algorithm.smaller(spec, traits):
            others.append((algorithm.cost(spec, traits, *choice), Plan(spec, algorithm.name, *choice)))
    for estimated, plan in sorted(others, key=lambda priced: priced[0]):
        size = named(plan.algorithm).packed_bytes(spec, plan.variant)
        if size < found[-1].packed_bytes and bytes_per_thread(plan, target, workspace_limit) <= workspace_limit:
            # a tuned first plan is the fastest, whatever the model says
            found.append(Candidate(plan, max(cost, estimated), size))
    return found


def plan_within(
    spec: Conv3DSpec, target: Target, packed_limit: int | None, workspace_limit: int = DEFAULT_LIMIT
) -> Plan:
    """The fastest plan whose packed weights take no more than a limit; where all take more, the one of the fewest.

    Args:
        spec, target, workspace_limit: as of :func:`candidates`.
        packed_limit: bytes; None for no limit.

    Raises:
        ValueError: as :func:`candidates`.
    """
    if packed_limit is None:
        return make_plan(spec, target, workspace_limit=workspace_limit)
    found = candidates(spec, target, workspace_limit)
    return next((each.plan for each in found if each.packed_bytes <= packed_limit), found[-1].plan)
