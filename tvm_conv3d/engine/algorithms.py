"""All algorithms by name, and by kind of target."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tvm_conv3d.compute.cuda import variants as of_gpus
from tvm_conv3d.compute.llvm import variants as of_cpus
from tvm_conv3d.engine.algorithm import Algorithm, Variant


@functools.cache
def algorithms(kind: str) -> Mapping[str, Algorithm[Any]]:
    """Name -> algorithm for a kind of target ("llvm" or "cuda"), the more special first."""
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"There are no schedules for this kind of target. Received: {kind!r}; supported: {known}")
    return {algorithm.name: algorithm for algorithm in _FAMILIES[kind]()}


def variant_types(kind: str) -> Mapping[str, type[Variant]]:
    """Name of an algorithm -> type of its variants, for a kind of target; needs no TVM."""
    return _VARIANTS[kind]


def named(name: str) -> Algorithm[Any]:
    """The algorithm of this name, whatever its kind of target.

    Raises:
        ValueError: there is none.
    """
    # one family after the other, as looking into one imports it
    for kind in _FAMILIES:
        if name in algorithms(kind):
            return algorithms(kind)[name]
    known = ", ".join(known for kind in _FAMILIES for known in algorithms(kind))
    raise ValueError(f"There is no algorithm of this name. Received: {name!r}; known: {known}")


def _of_cpus() -> tuple[Algorithm[Any], ...]:
    # declarations and design spaces import TVM
    from tvm_conv3d.engine.families import llvm

    return llvm.ALGORITHMS


def _of_gpus() -> tuple[Algorithm[Any], ...]:
    from tvm_conv3d.engine.families import cuda

    return cuda.ALGORITHMS


#: By kind of target; names are unique among all.
_FAMILIES = {"llvm": _of_cpus, "cuda": _of_gpus}

_VARIANTS: Mapping[str, Mapping[str, type[Variant]]] = {"llvm": of_cpus.BY_ALGORITHM, "cuda": of_gpus.BY_ALGORITHM}
