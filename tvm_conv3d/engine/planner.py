"""Which plan computes a problem: of a tuning record, else the default, within the limit of workspace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvm_conv3d.engine import cache, kept_plans, records, scheduling, workspace
from tvm_conv3d.engine.algorithms import algorithms, named, variant_types
from tvm_conv3d.engine.artifact import artifact_key
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.scheduling import schedule
from tvm_conv3d.engine.workspace import Workspace
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.cpu import is_cuda, thread_count
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import traits_of

#: Bytes a thread that a plan may take unless the layer says otherwise.
DEFAULT_LIMIT = 256 << 20

#: Number in a variant above which a record is taken for a slip of the pen.
_LARGEST = 1024


def check_limit(limit: Any) -> int:
    """`limit`, where it is a possible number of bytes.

    Raises:
        ValueError: it is no positive integer.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(
            "`workspace_limit` must be a number of bytes a thread, an integer of at least 1. "
            f"Received: workspace_limit={limit!r}"
        )
    return limit


def make_plan(
    spec: Conv3DSpec,
    target: Target,
    logs: str | Path | None = None,
    exact: bool = False,
    workspace_limit: int = DEFAULT_LIMIT,
) -> Plan:
    """The plan for `spec` on `target`: of the first tuning record that fits, else the default.

    Args:
        spec: the problem.
        target: what to compile for.
        logs: a folder of tuning logs, or one file of records, to ask before all others: see
            :func:`tvm_conv3d.engine.records.find`.
        exact: only algorithms that sum the products of the definition.
        workspace_limit: bytes that a plan's intermediates may take for each thread.

    Raises:
        ValueError: no algorithm takes this spec, none within the limit, or `logs` does not exist.
    """
    fitting = (found for found in records.find(spec, target, logs) if not exact or _may_be_exact(found.record, target))
    first = next(fitting, None)
    key = kept_plans.plan_key(spec, target, exact, workspace_limit, first)
    kept = kept_plans.load(key, spec, target)
    if kept is not None:
        return kept
    rejected = False
    for found in itertools.chain(() if first is None else (first,), fitting):
        try:
            plan = _recorded_plan(spec, target, found.record, str(found.file), workspace_limit)
            break
        except ValueError as error:
            found.reject(str(error))
            rejected = True
    else:
        plan = default_plan(spec, target, exact, workspace_limit)
    if not rejected:
        # else the next process is to say so, too
        kept_plans.store(key, plan)
    return plan


def kept_plan(spec: Conv3DSpec, target: Target, workspace_limit: int = DEFAULT_LIMIT) -> Plan | None:
    """The plan that :func:`make_plan` finds on disk; None where it must plan."""
    first = next(records.find(spec, target, None), None)
    return kept_plans.load(kept_plans.plan_key(spec, target, False, workspace_limit, first), spec, target)


def _may_be_exact(record: records.Record, target: Target) -> bool:
    """Whether a record's algorithm sums the products of the definition, or is none that is known."""
    variants = variant_types(target.kind)
    return record.algorithm not in variants or variants[record.algorithm].exact


def default_plan(spec: Conv3DSpec, target: Target, exact: bool = False, workspace_limit: int = DEFAULT_LIMIT) -> Plan:
    """The plan where nothing was tuned: of all algorithms' defaults the one of the least estimated time.

    Where that takes too much memory, the next of these, then the smallest tasks, then any other variant.

    Raises:
        ValueError: no algorithm takes this spec, or none within the limit.
    """
    needs = []
    for plan in _default_plans(spec, target, exact):
        needs.append(bytes_per_thread(plan, target, workspace_limit))
        if needs[-1] <= workspace_limit:
            return plan
    if not needs:
        raise ValueError(f"No algorithm takes {spec.key()} on {target}.")
    raise ValueError(
        f"{spec.key()} needs at least {min(needs)} bytes a thread for intermediates, more than the limit allows. "
        f"Pass workspace_limit={min(needs)}, or a smaller input. Received: workspace_limit={workspace_limit}"
    )


def _default_plans(spec: Conv3DSpec, target: Target, exact: bool) -> Iterator[Plan]:
    """What default plans there are, the first choice first; after the real ones those that take little memory."""
    traits = traits_of(target)
    defaults = [plan for _, plan in priced_defaults(spec, target, exact)]
    yield from defaults
    for plan in defaults:
        smallest = dict.fromkeys(plan.decisions, 1)
        others = named(plan.algorithm).variants(spec, traits)
        for variant in dict.fromkeys((plan.variant, *others)):
            yield replace(plan, variant=variant, decisions=smallest)


def priced_defaults(spec: Conv3DSpec, target: Target, exact: bool = False) -> list[tuple[float, Plan]]:
    """The default of each algorithm behind its estimated time, the fastest first.

    Args:
        spec, target, exact: as of :func:`make_plan`.
    """
    traits = traits_of(target)
    found = []
    for algorithm in algorithms(target.kind).values():
        default = algorithm.default(spec, traits) if algorithm.exact or not exact else None
        if default is not None:
            found.append((algorithm.cost(spec, traits, *default), Plan(spec, algorithm.name, *default)))
    # of equals the more special one
    return sorted(found, key=lambda priced: priced[0])


def _recorded_plan(spec: Conv3DSpec, target: Target, record: records.Record, origin: str, limit: int) -> Plan:
    """The plan of a record; raises ValueError, saying why, where the record does not fit the present code."""
    known = algorithms(target.kind)
    if record.algorithm not in known:
        raise ValueError(f"its algorithm is {record.algorithm!r}, and there are {', '.join(known)}")
    algorithm = known[record.algorithm]
    usual_variants = algorithm.variants(spec, traits_of(target))
    if not usual_variants:
        raise ValueError(f"the algorithm {record.algorithm} does not take this layer")
    try:
        variant = algorithm.variant(record.variant)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its variant is none of {record.algorithm}: {error}") from error
    for name, usual in vars(usual_variants[0]).items():
        value = getattr(variant, name)
        if not _plausible(value, usual):
            raise ValueError(f"its variant has {name}={value!r} where {usual!r} would be usual")
    plan = Plan(spec, record.algorithm, variant, dict(record.decisions), origin)
    _check_schedule(plan, target)
    needed = bytes_per_thread(plan, target, limit)
    if needed > limit:
        raise ValueError(f"it needs {needed} bytes of workspace a thread, and {limit} are allowed")
    return plan


def _plausible(value: Any, usual: Any) -> bool:
    """Whether a variant's field has the type of its usual value, and no number is out of all bounds."""
    if type(value) is not type(usual):
        return False
    if isinstance(value, tuple):
        return len(value) == len(usual) and all(map(_plausible, value, usual))
    return type(value) is not int or 0 <= value <= _LARGEST


def _check_schedule(plan: Plan, target: Target) -> None:
    """Makes sure that the design space takes the plan's decisions as they are.

    It takes some ten milliseconds, and is left out where the plan was compiled before, and so was checked then.
    """
    if cache.holds(artifact_key(plan, target)):
        return
    try:
        taken = schedule(plan)[1].taken()
    except Exception as error:
        # TVM raises what it likes: whatever it is, this record can't be used
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{plan.algorithm} can't be scheduled by it: {reason[-1][:200]}") from error
    if taken != dict(plan.decisions):
        raise ValueError(f"its decisions are {dict(plan.decisions)}, and the design space makes them {taken}")


def workspace_of(plan: Plan, target: Target) -> Workspace:
    """What the plan's kernel takes: as noted when it was compiled, else worked out from its schedule."""
    kept = cache.workspace(artifact_key(plan, target))
    if kept is not None:
        return kept
    return workspace.of_small_buffers(scheduling.with_small_buffers(scheduling.scheduled_module(plan, target)))


def bytes_per_thread(plan: Plan, target: Target, enough: int = 0) -> int:
    """Bytes a thread that the plan's kernel takes; an upper bound, found sooner, where that is not above `enough`.

    On a GPU, which counts as one thread, only what lies in its memory between kernels.
    """
    declaration = named(plan.algorithm).declare(plan.spec, plan.variant)
    if is_cuda(target):
        return declaration.kept_bytes()
    bound = declaration.intermediate_bytes()
    return bound if bound <= enough else workspace_of(plan, target).per_thread(thread_count(target))
