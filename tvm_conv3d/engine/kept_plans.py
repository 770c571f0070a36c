"""Plans on disk, found again by every process of the user: planning takes an import of TVM.

A plan is found by all that it was made of. Whoever reads it needs no TVM.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict
from pathlib import Path

import tvm_conv3d.schedules as schedules
from tvm_conv3d.engine.algorithm import variant_of
from tvm_conv3d.engine.algorithms import variant_types
from tvm_conv3d.engine.artifact import key_of
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.records import Found
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.support import notes
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import traits_of

#: Of the notes on disk.
_KIND = "plans"


def plan_key(spec: Conv3DSpec, target: Target, exact: bool, limit: int, found: Found | None) -> str:
    """Hash of all that a plan is made of, the versions and sources of this package and TVM among it.

    Args:
        spec: the problem.
        target: what it is compiled for.
        exact: whether only algorithms that sum the products of the definition are taken.
        limit: bytes that its intermediates may take for each thread.
        found: the first record that may serve it.
    """
    record = None if found is None else [str(found.file), found.record.line()]
    options = {"exact": exact, "limit": limit, "record": record}
    return key_of({"plan of": spec.key(), **options, **_about(target)})


def candidates_key(first: Plan, target: Target, limit: int) -> str:
    """Hash of all that :func:`tvm_conv3d.engine.bounded.candidates` are made of.

    Args:
        first: the plan of :func:`tvm_conv3d.engine.planner.make_plan`.
        target, limit: as of :func:`plan_key`.
    """
    options = {"first": [first.describe(), first.origin], "limit": limit}
    return key_of({"candidates for": first.spec.key(), **options, **_about(target)})


def _about(target: Target) -> dict[str, object]:
    """Of the target what plans are made of; of a CPU, its caches are the system's to tell."""
    return {"target": target.text, "traits": asdict(traits_of(target)), "costs": _hash_of_costs()}


def load(key: str, spec: Conv3DSpec, target: Target) -> Plan | None:
    """The plan under `key`; None where there is none, or it is damaged."""
    values = notes.load(_KIND, key)
    try:
        variant = variant_of(variant_types(target.kind)[values["algorithm"]], values["variant"])
        decisions = {str(name): int(value) for name, value in values["decisions"].items()}
        plan = Plan(spec, values["algorithm"], variant, decisions, values["origin"])
        # as if it had been asked for before, as only modules that import TVM can answer
        vars(plan)["error_bound"] = float(values["error_bound"])
        return plan
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def store(key: str, plan: Plan) -> None:
    """Keeps `plan` under `key`, where that is possible."""
    variant, decisions = asdict(plan.variant), dict(plan.decisions)
    values = {"algorithm": plan.algorithm, "variant": variant, "decisions": decisions, "origin": plan.origin}
    notes.store(_KIND, key, {"spec": plan.spec.key(), **values, "error_bound": plan.error_bound})


@functools.cache
def _hash_of_costs() -> str:
    """Hash of the tables of costs, which are no sources of machine code."""
    digest = hashlib.sha256()
    folder = Path(str(schedules.__file__)).parent
    for path in sorted(folder.rglob("*.json")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
