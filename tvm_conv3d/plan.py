"""How a convolution is done: an algorithm, its variant and its decisions, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tvm_conv3d.algorithms import Algorithm, Variant, algorithms
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.targets import cpu_traits

if TYPE_CHECKING:
    from tvm.target import Target

DEFAULT_ORIGIN = "default"


@dataclass(frozen=True)
class Plan:
    """One way of computing one spec on one target.

    Attributes:
        spec: the problem.
        algorithm: name of the algorithm, a key of `algorithms(target.kind)`.
        variant: what changes the TE declaration.
        decisions: values of the design space's named decisions.
        origin: where algorithm, variant and decisions were found: "default", or the record's file.
    """

    spec: Conv3DSpec
    algorithm: str
    variant: Variant
    decisions: Mapping[str, int] = field(hash=False)
    origin: str = DEFAULT_ORIGIN

    def describe(self) -> str:
        """The plan without spec and origin as one line of JSON: a part of the compiled module's identity."""
        fields = {"algorithm": self.algorithm, "variant": asdict(self.variant), "decisions": dict(self.decisions)}
        return json.dumps(fields, sort_keys=True)


def make_plan(spec: Conv3DSpec, target: Target) -> Plan:
    """The plan for `spec` on `target`: the first algorithm that applies, with its default decisions.

    Raises:
        ValueError: no algorithm takes this spec.
    """
    traits = cpu_traits(target)
    for algorithm in algorithms(str(target.kind.name)).values():
        found = algorithm.default(spec, traits)
        if found is not None:
            variant, decisions = found
            return Plan(spec, algorithm.name, variant, decisions)
    raise ValueError(f"No algorithm takes {spec.key()} on {target}.")


def algorithm_of(plan: Plan, kind: str) -> Algorithm:
    """The algorithm that a plan names.

    Raises:
        ValueError: there is none of that name for this kind of target.
    """
    known: Mapping[str, Any] = algorithms(kind)
    if plan.algorithm not in known:
        raise ValueError(f"Unknown algorithm for {kind}. Received: {plan.algorithm!r}; known: {', '.join(known)}")
    return known[plan.algorithm]
