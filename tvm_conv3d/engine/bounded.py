"""Plans of one problem that pack fewer weights than the fastest, and take longer."""

from __future__ import annotations

from typing import NamedTuple

from tvm_conv3d.engine import kept_plans
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import DEFAULT_LIMIT, bytes_per_thread, kept_plan, make_plan, priced_defaults
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import notes
from tvm_conv3d.target.cpu import is_cuda
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import traits_of

#: Bytes of packed weights below which there is nothing to gain.
_MIN_BYTES = 4 << 20

#: Of the notes on disk, which say what the plans beside them take.
_KIND = "candidates"


class Candidate(NamedTuple):
    """A plan, its estimated time, comparable on one target, and the bytes of its packed weights."""

    plan: Plan
    cost: float
    packed_bytes: int


def candidates(spec: Conv3DSpec, target: Target, workspace_limit: int = DEFAULT_LIMIT) -> list[Candidate]:
    """The plan that :func:`tvm_conv3d.engine.planner.make_plan` makes, then those that pack fewer and fewer weights.

    Each next one is the fastest of its size by the cost model. On GPUs there is the first alone. They are kept on disk.

    Args:
        spec: the problem.
        target: what to compile for.
        workspace_limit: bytes that a plan's intermediates may take for each thread.

    Raises:
        ValueError: no algorithm takes the spec, or none within the limit.
    """
    first = make_plan(spec, target, workspace_limit=workspace_limit)
    key = kept_plans.candidates_key(first, target, workspace_limit)
    kept = _load(key, first, target)
    if kept is None:
        kept = _found(first, target, workspace_limit)
        _store(key, kept)
    return kept


def are_kept(spec: Conv3DSpec, target: Target, workspace_limit: int = DEFAULT_LIMIT) -> bool:
    """Whether :func:`candidates` finds them on disk."""
    first = kept_plan(spec, target, workspace_limit)
    if first is None:
        return False
    return _load(kept_plans.candidates_key(first, target, workspace_limit), first, target) is not None


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


def _found(first: Plan, target: Target, workspace_limit: int) -> list[Candidate]:
    spec, traits, algorithm = first.spec, traits_of(target), named(first.algorithm)
    cost = algorithm.cost(spec, traits, first.variant, first.decisions)
    found = [Candidate(first, cost, algorithm.packed_bytes(spec, first.variant))]
    if is_cuda(target) or found[0].packed_bytes < _MIN_BYTES:
        return found
    others = priced_defaults(spec, target)
    for algorithm in algorithms(target.kind).values():
        for choice in algorithm.smaller(spec, traits):
            others.append((algorithm.cost(spec, traits, *choice), Plan(spec, algorithm.name, *choice)))
    for estimated, plan in sorted(others, key=lambda priced: priced[0]):
        size = named(plan.algorithm).packed_bytes(spec, plan.variant)
        if size < found[-1].packed_bytes and bytes_per_thread(plan, target, workspace_limit) <= workspace_limit:
            # a tuned first plan is the fastest, whatever the model says
            found.append(Candidate(plan, max(cost, estimated), size))
    return found


def _load(key: str, first: Plan, target: Target) -> list[Candidate] | None:
    """Those under `key`; None where there are none, or some are damaged."""
    try:
        (cost, size), *others = [(float(cost), int(size)) for cost, size in notes.load(_KIND, key)]
    except (TypeError, ValueError):
        return None
    found = [Candidate(first, cost, size)]
    for number, (cost, size) in enumerate(others, 1):
        plan = kept_plans.load(_key_of(key, number), first.spec, target)
        if plan is None:
            return None
        found.append(Candidate(plan, cost, size))
    return found


def _store(key: str, found: list[Candidate]) -> None:
    """Keeps them under `key`, where that is possible."""
    for number, each in enumerate(found[1:], 1):
        kept_plans.store(_key_of(key, number), each.plan)
    notes.store(_KIND, key, [[each.cost, each.packed_bytes] for each in found])


def _key_of(key: str, number: int) -> str:
    return notes.key_of({"candidates": key, "number": number})
