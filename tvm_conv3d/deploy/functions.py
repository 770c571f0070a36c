"""The functions of a CPU's exported module: their names, and what each takes.

pack      weights as `convolve` reads them; where the plan is exact, as `main` does
convolve  the convolution; only where the plan is not exact
main      the convolution by the plan; it has flags where the plan is not exact, and its results need a look at them
exact     the convolution by an exact plan, which sums the products of the definition; only where the plan is not exact

`pack_main` and `pack_exact`, where there is an `exact`, pack for `main` and `exact` alone. What packing gives as
`packed_kernel`, the convolution takes as `kernel`, and so on; `convolve` has the weights of `exact` as `exact_kernel`
and `exact_bias`. In a module that has a name, all of them begin with it: `NAME_pack` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from tvm_conv3d.compute.shared.argument import PACK, Argument, Function
from tvm_conv3d.engine.artifact import MAIN
from tvm_conv3d.spec import Conv3DSpec

#: Names of the functions that only the module of a plan that is not exact has.
CONVOLVE, EXACT, PACK_MAIN, PACK_EXACT = "convolve", "exact", "pack_main", "pack_exact"

#: How names of packed weights begin, and those of the exact plan's weights where they stand beside the others.
_PACKED, _OF_EXACT = "packed_", "exact_"


def prefix_of(name: str) -> str:
    """What the names of the functions in a module begin with that has this name, or none.

    Raises:
        ValueError: it is no identifier of C.
    """
    if name and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"The name must be letters, digits and underscores, no digit first. Received: name={name!r}")
    return f"{name}_" if name else ""


def packed(name: str) -> str:
    """What packing calls that which a convolution takes under `name`."""
    return _PACKED + name


def of_exact(name: str) -> str:
    """What `convolve` and `pack` call that which `exact` and `pack_exact` take under `name`, where it is their own."""
    return packed(of_exact(name.removeprefix(_PACKED))) if name.startswith(_PACKED) else _OF_EXACT + name


def entry_of(functions: Mapping[str, Function]) -> str:
    """Name of the convolution whose results need no look at flags; its weights come of `pack`."""
    return CONVOLVE if CONVOLVE in functions else MAIN


def with_fallback(
    spec: Conv3DSpec, main: Function, pack_main: Function, exact: Function, pack_exact: Function
) -> dict[str, Function]:
    """What all functions take where the plan is not exact, by name; `convolve` sees input and output as `spec` does.

    Args:
        spec: the problem.
        main, pack_main: of its plan.
        exact, pack_exact: of an exact plan.
    """
    weights = [*main.of("weights", "bias"), *map(_of_exact, exact.of("weights", "bias"))]
    data = [replace(a, shape=spec.input_shape) for a in main.of("input")]
    results = [replace(a, shape=spec.output_shape) for a in main.of("residual", "output")]
    return {
        PACK: Function((*pack_main.arguments, *map(_of_exact, pack_exact.of("output")))),
        CONVOLVE: Function((*data, *weights, *results)),
        MAIN: main,
        EXACT: exact,
        PACK_MAIN: pack_main,
        PACK_EXACT: pack_exact,
    }


def _of_exact(argument: Argument) -> Argument:
    return replace(argument, name=of_exact(argument.name))
