"""Inputs, and weights, that are fetched while the tile, or the panel, before them is computed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import tvm

from problems import run_plan
from tvm_conv3d.compute.llvm.direct import DirectVariant
from tvm_conv3d.compute.llvm.planes import PlanesVariant
from tvm_conv3d.compute.llvm.winograd import WinogradVariant
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.schedules.llvm.costs import prefetch
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec
from tvm_conv3d.target.resolve import resolve

POINTWISE = Conv3DSpec(1, (4, 8, 14), 24, 48, (1, 1, 1))
PLANES = Conv3DSpec(1, (4, 8, 32), 24, 48, (1, 1, 1), data_format=CHANNELS_FIRST)
PATCHES = Conv3DSpec(2, (4, 9, 12), 5, 16, (2, 3, 4), strides=(2, 3, 4))

#: Problems whose tiles are several rows, hold more cells than a line has elements, leave inputs out, or end the input.
CASES = [
    (POINTWISE, DirectVariant(16, 1, 1, 28, gather="none")),
    (POINTWISE, DirectVariant(16, 1, 1, 14, gather="none", order="spatial_filters")),
    (PATCHES, DirectVariant(16, 1, 3, 1, gather="none", order="filters_parallel")),
    (PATCHES, DirectVariant(16, 1, 1, 3, gather="none", unroll_taps=True)),
    (Conv3DSpec(1, (5, 9, 11), 7, 16, (1, 1, 1), strides=(2, 2, 2)), DirectVariant(16, 1, 1, 6, gather="none")),
    (Conv3DSpec(1, (4, 6, 9), 7, 16, (1, 1, 2), strides=(1, 1, 3)), DirectVariant(8, 2, 2, 3, gather="none")),
    (Conv3DSpec(1, (4, 6, 8), 7, 16, (1, 1, 1), dtype="float64"), DirectVariant(8, 2, 1, 4, gather="none")),
]


@pytest.mark.parametrize(("spec", "variant"), CASES)
@pytest.mark.parametrize("unroll", [1, 4])
def test_the_numbers_are_right(spec: Conv3DSpec, variant: DirectVariant, unroll: int) -> None:
    assert prefetch.pays(canonicalize(spec))
    assert run_plan(Plan(spec, "direct", variant, {"unroll": unroll})) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "change", [{}, {"kernel": (2, 1, 1), "strides": (2, 1, 1)}, {"strides": (2, 2, 1)}, {"batch": 2}]
)
def test_the_numbers_of_planes_are_right(change: dict[str, object], dtype: str) -> None:
    spec = replace(PLANES, dtype=dtype, **change)  # type: ignore[arg-type]
    variant = PlanesVariant(8, 2, 1, 6, gather=False)
    assert prefetch.pays(canonicalize(spec))
    assert run_plan(Plan(spec, "planes", variant, {"depth": 2, "columns": 1})) < 1e-6


def assembly(spec: Conv3DSpec, algorithm: str = "direct") -> str:
    target = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
    plan = default_plan(spec, target)
    assert plan.algorithm == algorithm
    return str(tvm.compile(scheduling.scheduled_module(plan, target), target=target.as_tvm()).mod.inspect_source("asm"))


@pytest.mark.parametrize(("spec", "algorithm"), [(POINTWISE, "direct"), (PLANES, "planes")])
def test_the_loop_fetches_and_keeps_its_sums_in_registers(spec: Conv3DSpec, algorithm: str) -> None:
    loops = [body for body in re.split(r"\n\.LBB\S+:", assembly(spec, algorithm)) if "prefetcht0" in body]
    assert loops
    for body in loops:
        body = body[: body.index("\tj")]
        assert "vfmadd231ps" in body
        assert not re.search(r"vmovups\t%[xyz]mm\d+, ", body)


def test_only_where_each_input_is_read_once() -> None:
    assert "prefetch" not in assembly(Conv3DSpec(1, (6, 8, 14), 24, 8, (3, 3, 3), dtype="float64"))
    assert not prefetch.pays(canonicalize(Conv3DSpec(1, (4, 8, 14), 24, 48, (1, 1, 1), groups=2)))


def test_numbers_of_bytes_must_fit() -> None:
    assert prefetch.pays(canonicalize(Conv3DSpec(1, (1, 1, 2**20), 256, 4, (1, 1, 1))))
    assert not prefetch.pays(canonicalize(Conv3DSpec(1, (1, 1, 2**20), 257, 4, (1, 1, 1))))
    # more than 2^29 results
    assert "prefetch" not in assembly(Conv3DSpec(1, (1, 1, 2**20), 16, 1024, (1, 1, 1)))


#: 1 MiB of transformed weights, from which on panels are fetched, and a little less.
CHANNELS = Conv3DSpec(1, (4, 6, 7), 64, 64, (3, 3, 3), pads=((1, 1), (1, 1), (1, 1)))
FEWER = replace(CHANNELS, channels=48)


def product(**change: object) -> WinogradVariant:
    return replace(WinogradVariant("ppp", (2, 2, 2), (1, 2, 2), 16, 2, 4), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("unroll", [1, 4])
@pytest.mark.parametrize(
    ("spec", "variant"),
    [
        (CHANNELS, product()),
        (CHANNELS, product(lanes=8, vectors=1)),
        (replace(CHANNELS, channels=70, filters=90), product()),
        (replace(CHANNELS, data_format=CHANNELS_FIRST), product(vectors=3)),
        (replace(CHANNELS, channels=256, filters=128, groups=2), product()),
        (CHANNELS, product(staged=True)),
    ],
)
def test_the_numbers_of_products_are_right(spec: Conv3DSpec, variant: WinogradVariant, unroll: int) -> None:
    assert run_plan(Plan(spec, "winograd", variant, {"unroll": unroll})) < 1e-5


def of_products(spec: Conv3DSpec, **change: object) -> str:
    target = resolve({"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}, 2)
    plan = Plan(spec, "winograd", product(**change), {"unroll": 1})
    return str(tvm.compile(scheduling.scheduled_module(plan, target), target=target.as_tvm()).mod.inspect_source("asm"))


def test_products_fetch_a_panel_and_keep_their_sums_in_registers() -> None:
    bodies = re.split(r"\n\.LBB\S+:", of_products(CHANNELS))
    loops = [body[: body.index("\tj")] for body in bodies if "prefetcht0" in body]
    assert loops
    for body in loops:
        # a line of each vector of weights, which four tiles are multiplied by
        assert body.count("vfmadd231ps") == 4 * body.count("prefetcht0")
        assert not re.search(r"vmovups\t%[xyz]mm\d+, ", body)


@pytest.mark.parametrize(("spec", "change"), [(FEWER, {}), (CHANNELS, {"staged": True})])
def test_weights_that_stay_in_a_cores_cache_are_not_fetched(spec: Conv3DSpec, change: dict[str, object]) -> None:
    assert "prefetch" not in of_products(spec, **change)
