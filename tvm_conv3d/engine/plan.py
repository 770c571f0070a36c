"""How a convolution is done: an algorithm, its variant and its decisions, and where they came from."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tvm_conv3d.engine.algorithm import Variant
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.spec import Conv3DSpec

DEFAULT_ORIGIN = "default"


@dataclass(frozen=True)
class Plan:
    """One way of computing one spec on one target.

    Attributes:
        spec: the problem.
        algorithm: its name, which :func:`tvm_conv3d.engine.algorithms.named` knows.
        variant: what changes the TE declaration.
        decisions: values of the design space's named decisions.
        origin: where algorithm, variant and decisions were found: "default", or the record's file.
    """

    spec: Conv3DSpec
    algorithm: str
    variant: Variant
    decisions: Mapping[str, int] = field(hash=False)
    origin: str = DEFAULT_ORIGIN

    @property
    def origin_name(self) -> str:
        """The origin in few words, the same on every machine."""
        return self.origin if self.origin == DEFAULT_ORIGIN else f"record of {Path(self.origin).parent.name}"

    @property
    def exact(self) -> bool:
        """Whether it sums the products of the definition, so that NaN and infinity reach exactly their windows."""
        return self.variant.exact

    @functools.cached_property
    def error_bound(self) -> float:
        """The relative error (2-norm) to expect of data and weights without structure."""
        return named(self.algorithm).error_bound(self.spec, self.variant)

    def describe(self) -> str:
        """The plan without spec and origin as one line of JSON: a part of the compiled module's identity."""
        fields = {"algorithm": self.algorithm, "variant": asdict(self.variant), "decisions": dict(self.decisions)}
        return json.dumps(fields, sort_keys=True)
