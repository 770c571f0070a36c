"""The C library's functions in vectors, against float64's, and where they stay calls of the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from tvm_conv3d.schedules.llvm.passes import vector_math, vectorize_libm
from tvm_conv3d.target.cpu import host_target

COUNT = 3 << 14

#: Functions in float64, and how many units in the last place those in vectors may be off.
EXACT: dict[str, tuple[Callable[[Any], Any], float]] = {
    "expf": (np.exp, 1.5),
    "expm1f": (np.expm1, 2),
    "tanhf": (np.tanh, 3),
    "log1pf": (np.log1p, 3),
    "erfcf": (np.vectorize(math.erfc), 5),
}

INFINITE = (np.inf, -np.inf, np.nan)
SPECIAL = np.array(
    [0, -0.0, *INFINITE, -1, -2, 1e-45, -1e-45, 1e-38, 88.72, 88.73, 104, -87.4, -103.9, -104, 3e38, -3e38]
)


def module(name: str, lanes: int, dtype: str = "float32") -> tvm.IRModule:
    @T.prim_func
    def main(a: T.handle, b: T.handle):  # type: ignore[no-untyped-def]
        x, y = T.match_buffer(a, (COUNT,), dtype), T.match_buffer(b, (COUNT,), dtype)
        for i in range(COUNT // lanes):
            for j in T.vectorized(lanes):
                y[i * lanes + j] = tirx.call_pure_extern(dtype, name, x[i * lanes + j])

    return tvm.IRModule({"main": main})


def computed(name: str, lanes: int, x: np.ndarray) -> np.ndarray:
    compiled = tvm.compile(vectorize_libm.rewrite(module(name, lanes)), target=host_target(1).as_tvm())
    y = tvm.runtime.tensor(np.zeros(COUNT, np.float32))
    compiled["main"](tvm.runtime.tensor(np.resize(x.astype(np.float32), COUNT)), y)
    return y.numpy()[: x.size]


def test_all_functions_are_tested() -> None:
    assert set(EXACT) == set(vector_math.FUNCTIONS)


@pytest.mark.parametrize("lanes", [1, 6, 16])
@pytest.mark.parametrize("name", EXACT)
def test_every_number_is_near_the_exact_one(name: str, lanes: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.uniform(low, high, COUNT // 4) for low, high in ((-104, 89), (-10, 10), (-1, 1), (-1e-3, 1e-3))]
    bits = rng.integers(0, 1 << 32, COUNT, dtype=np.uint32).view(np.float32)
    function, allowed = EXACT[name]
    for x in (np.concatenate(parts).astype(np.float32), bits, SPECIAL.astype(np.float32)):
        result = computed(name, lanes, x)
        with np.errstate(all="ignore"):
            exact = function(x.astype(np.float64))
            wanted = exact.astype(np.float32)
            # numbers below the least normal one are judged as that one is
            unit = np.spacing(np.maximum(np.abs(wanted), np.float32(1e-37)))
            units = np.abs(result.astype(np.float64) - exact) / unit
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(result[~finite], wanted[~finite])
        assert units[finite].max() <= allowed


@pytest.mark.parametrize("name", EXACT)
def test_loops_become_vectors(name: str) -> None:
    text = str(
        tvm.compile(vectorize_libm.rewrite(module(name, 16)), target=host_target(1).as_tvm()).mod.inspect_source("ll")
    )
    assert f"@{name}" not in text and "fmul <16 x float>" in text


@pytest.mark.parametrize(("name", "dtype"), [("exp", "float64"), ("sinf", "float32")])
def test_other_functions_stay_the_librarys(name: str, dtype: str) -> None:
    given = module(name, 4, dtype)
    tvm.ir.assert_structural_equal(vectorize_libm.rewrite(given), given)
