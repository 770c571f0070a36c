"""Tables of costs, and the choice among algorithms by them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvm_conv3d.compute.llvm import weight_gradient
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import Algorithm, algorithms
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.schedules.llvm.costs import table
from tvm_conv3d.spec import CHANNELS_FIRST, WEIGHT_GRADIENT, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import CpuTraits, cpu_traits
from tvm_conv3d.target.resolve import resolve

FOLDER = Path(table.__file__).parent / "tables"
ZEN4 = resolve({"kind": "llvm", "mcpu": "znver4", "num-cores": 2}, 2)


def cube(size: tuple[int, int, int], channels: int, filters: int, kernel: int = 3, groups: int = 1) -> Conv3DSpec:
    pads = (Pads(kernel // 2, kernel // 2),) * 3
    return Conv3DSpec(1, size, channels, filters, (kernel,) * 3, pads=pads, groups=groups)


#: Few and many channels, odd ones, groups of all kinds, weights that no cache holds.
LAYERS = [
    cube((16, 56, 56), 64, 64),
    cube((8, 28, 28), 37, 41),
    cube((4, 14, 14), 512, 512),
    cube((2, 7, 7), 1024, 1024),
    cube((16, 64, 64), 1, 32),
    cube((16, 64, 64), 32, 2),
    cube((4, 14, 14), 1024, 256, kernel=1),
    cube((16, 28, 28), 96, 96, groups=96),
    cube((16, 28, 27), 53, 53, groups=53),
    cube((8, 28, 28), 64, 64, kernel=5, groups=64),
    cube((32, 112, 112), 216, 216, groups=216),
    cube((8, 28, 32), 20, 20, groups=20),
    cube((4, 28, 28), 1024, 1024, groups=1024),
    cube((4, 28, 28), 1004, 1004, groups=1004),
    cube((8, 28, 28), 48, 24, groups=8),
    cube((8, 28, 28), 40, 40, groups=4),
    cube((8, 28, 28), 44, 44, groups=22),
    cube((64, 128, 128), 8, 1, kernel=1),
    replace(cube((8, 29, 29), 32, 64), strides=(1, 2, 2)),
    replace(cube((8, 29, 29), 184, 184, groups=184), strides=(1, 2, 2)),
    cube((8, 29, 29), 16, 48, kernel=1),
]


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_a_table_says_where_it_was_measured_and_prices_every_algorithm(path: Path) -> None:
    found = table.Table(**json.loads(path.read_text()))
    assert found.microarchitecture == path.stem
    assert found.machine and found.command
    assert found.date.startswith("20")
    assert set(found.cycles) == set(algorithms("llvm"))
    assert all(cost >= 0 for costs in found.cycles.values() for cost in costs.values())


def test_every_amount_has_a_cost_and_every_cost_an_amount() -> None:
    """Over layers of all kinds in both formats; what no layer asks for would be a number that nothing checks."""
    met: dict[str, set[str]] = {name: set() for name in algorithms("llvm")}
    for mcpu in ("znver4", "x86-64-v3"):
        traits = cpu_traits(resolve({"kind": "llvm", "mcpu": mcpu, "num-cores": 2}, 2))
        costs = table.table_of(traits).cycles
        gradients = [replace(s, direction=WEIGHT_GRADIENT) for s in LAYERS]
        for spec in (*LAYERS, *(replace(s, data_format=CHANNELS_FIRST) for s in LAYERS), *gradients):
            for name, algorithm in algorithms("llvm").items():
                for variant, decisions in _plans(algorithm, spec, traits):
                    amounts = algorithm.costs.amounts(canonicalize(spec), traits, variant, decisions)
                    assert set(amounts) <= set(costs[name])
                    assert all(amount >= 0 for amount in amounts.values())
                    met[name] |= set(amounts)
    for name, names in met.items():
        unmet = {amount for amount in set(costs[name]) - names if not amount.startswith("product_")}
        assert not unmet, f"{name}: nothing asks for {unmet}"


def _plans(algorithm: Algorithm[Any], spec: Conv3DSpec, traits: CpuTraits) -> Iterator[tuple[Any, dict[str, int]]]:
    """Variants and decisions, those that no default takes among them."""
    if algorithm.name in ("winograd", "winograd_rows", "direct"):
        for variant in algorithm.variants(spec, traits):
            yield variant, {"depth": 1, "rows": 1, "columns": 1}
    found = algorithm.default(spec, traits)
    if found is not None:
        yield found
        if algorithm.name == "grouped":
            # all in one task
            yield found[0], {**found[1], "depth": spec.out_size[0], "rows": spec.out_size[1]}
        if algorithm.of_weights:
            channels, filters = weight_gradient.tiles_of(canonicalize(spec), found[0])
            yield found[0], {"channels": channels, "filters": filters}


def test_another_microarchitecture_takes_its_own_table_or_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traits = cpu_traits(ZEN4)
    assert table.table_of(traits).microarchitecture == "znver4"
    assert table.table_of(replace(traits, microarchitecture="sapphirerapids")).microarchitecture == "znver4"
    assert (
        table.table_of(replace(traits, vector_bits=256, microarchitecture="haswell")).microarchitecture == "x86-64-v3"
    )
    assert table.table_of(replace(traits, microarchitecture="")).microarchitecture == "znver4"
    usual = table.table_of(traits)
    monkeypatch.setattr(table, "_FOLDER", tmp_path)
    replace(usual, microarchitecture="sierraforest", machine="another").write()
    assert table.table_of(replace(traits, microarchitecture="sierraforest")).machine == "another"


def test_the_cheapest_algorithm_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order: the same table with Winograd's transforms made dear leaves it aside."""
    spec = Conv3DSpec(1, (8, 14, 14), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3)
    assert default_plan(spec, ZEN4).algorithm == "winograd"
    usual = table.table_of(cpu_traits(ZEN4))
    dear = {**usual.cycles, "winograd": {**usual.cycles["winograd"], "transform": 100.0}}
    monkeypatch.setattr(table, "table_of", lambda traits: replace(usual, cycles=dear))
    assert default_plan(spec, ZEN4).algorithm == "direct"
