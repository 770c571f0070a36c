"""Channels that fill no vectors, gathered piece by piece."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import tvm
from tvm import ir, tirx

from problems import BOUNDS, run_plan
from sampling import sampled
from tvm_conv3d.compute.llvm.winograd import WinogradVariant
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules import index_analysis
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.target.resolve import resolve

AVX512 = {"kind": "llvm", "mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}

SPEC = Conv3DSpec(2, (5, 8, 9), 7, 16, (3, 3, 3), pads=(Pads(1, 1), Pads(2, 0), Pads(1, 2)), post_ops=("relu",))


def plan(spec: Conv3DSpec, modes: str, tile: tuple[int, int, int], lanes: int = 16) -> Plan:
    return Plan(spec, "winograd", WinogradVariant(modes, tile, (1, 2, 2), lanes, 1, 4), {})


#: Modes, a tile and a change of the layer.
Case = tuple[str, tuple[int, int, int], dict[str, object]]

CASES: list[Case] = [
    ("ppp", (2, 2, 2), {}),
    ("pfp", (2, 1, 2), {}),
    ("ppf", (2, 2, 1), {}),
    ("fff", (1, 1, 1), {"pads": (Pads(0, 2), Pads(2, 3), Pads(3, 3))}),
    ("pss", (2, 2, 2), {"strides": (1, 2, 2)}),
    ("psf", (2, 2, 1), {"strides": (1, 2, 3)}),
    ("dff", (2, 1, 1), {"dilation": (2, 1, 2)}),
]


@pytest.mark.parametrize(("case", "channels", "dtype"), sampled(itertools.product(CASES, (1, 3, 7, 17, 33), BOUNDS), 9))
def test_the_numbers_are_right(case: Case, channels: int, dtype: str) -> None:
    modes, tile, change = case
    spec = replace(SPEC, channels=channels, dtype=dtype, **change)  # type: ignore[arg-type]
    lanes = 8 if dtype == "float64" else 16
    assert run_plan(plan(spec, modes, tile, lanes)) < max(BOUNDS[dtype], 1e-5)


def test_no_number_is_copied_by_itself() -> None:
    """Taps of a row of 7 channels are one piece of 21; a vector of it begins where a division would have said."""
    target = resolve(AVX512, 2)
    folded = plan(SPEC, "ppf", (2, 2, 1))
    module = scheduling.lowered_module(scheduling.scheduled_module(folded, target), target)
    text = str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm"))
    assert re.search(r"vmovups\t.*\{%k\d\} \{z\}", text)
    # a multiplication by the reciprocal of 7 or 21
    assert not re.search(r"imulq\t\$(818089009|613566757|2454267027|-1840700269)", text)
    assert len(re.findall(r"vmovss\t", text)) < 8


@pytest.mark.parametrize("condition", [lambda w: w // 7 < 2, lambda w: w < 14, lambda w: w // 7 <= 1])
@pytest.mark.parametrize("begins", [lambda w: w // 7 >= 1, lambda w: w >= 7, lambda w: tirx.EQ(w // 7, 1)])
def test_bounds_of_a_piece_are_those_of_its_cells(
    condition: Callable[[ir.Var], object], begins: Callable[[ir.Var], object]
) -> None:
    """TVM writes one for the other where it sees that they are the same."""
    w = ir.Var("w", "int32")
    found = index_analysis.bounds([condition(w), begins(w)], w, 1, per_position=7)
    assert max(map(int, found.first)) == 7
    assert min(map(int, found.end)) == 14
