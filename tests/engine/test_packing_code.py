"""The function that packs weights is code of its own, found under what it depends on: equal layers share it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import data, data_gradients, specs
from tvm_conv3d import Conv3D
from tvm_conv3d.compute.shared.argument import PACK, Function
from tvm_conv3d.engine import build, scheduling
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.artifact import Artifact, packing_key
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange, loader
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.support import folders
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import cpu_traits, host_target

SPEC = Conv3DSpec(1, (4, 6, 8), 16, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3)


@pytest.fixture(autouse=True)
def packings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans whose packing is compiled, with nothing on disk or in memory before."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(loader, "_loaded", Recent(1024))
    plans: list[Plan] = []
    real = build.compile_packing

    def noting(plan: Plan, target: Any) -> Artifact:
        plans.append(plan)
        return real(plan, target)

    monkeypatch.setattr(build, "compile_packing", noting)
    return plans


def key_of(plan: Plan, cores: int = 2) -> str:
    main = Function(named(plan.algorithm).declare(plan.spec, plan.variant).arguments)
    return packing_key(plan, main, host_target(cores))


def first_plan(spec: Conv3DSpec, algorithm: str) -> Plan:
    return Plan(spec, algorithm, named(algorithm).variants(spec, cpu_traits(host_target(2)))[0], {})


def check(executor: Executor, spec: Conv3DSpec) -> None:
    x, kernel, bias = data(spec)
    result = executor.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    assert oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias)) < 1e-5


def test_equal_layers_share_it(packings: list[Plan]) -> None:
    for _ in range(2):
        check(Executor(accuracy="strict"), SPEC)
    assert len(packings) == 1
    loader._loaded.clear()
    check(Executor(accuracy="strict"), SPEC)
    assert len(packings) == 1, "as in another process, which finds it on disk"


def test_further_sizes_need_no_other(packings: list[Plan]) -> None:
    executor, (_, kernel, bias) = Executor(accuracy="strict"), data(SPEC)
    for size in ((4, 6, 8), (5, 9, 8), (4, 6, 8), (7, 6, 9)):
        spec = replace(SPEC, size=size)
        x = data(spec)[0]
        result = executor.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
        assert oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias)) < 2e-6
    assert len(packings) == 1


def test_one_key_is_of_one_function() -> None:
    """Sizes, pads and post-ops change nothing of the function where they do not change the key."""
    shared = 0

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.one_of(specs(), data_gradients()), st.integers(1, 3), st.tuples(*(st.integers(0, 4),) * 3))
    def compare(spec: Conv3DSpec, batch: int, more: tuple[int, int, int]) -> None:
        nonlocal shared
        size = tuple(n + extra for n, extra in zip(spec.size, more, strict=True))
        other = replace(spec, batch=batch, size=size, post_ops=("relu",))
        for algorithm in algorithms("llvm").values():
            for variant in algorithm.variants(spec, cpu_traits(host_target(2)))[:1]:
                plans = [Plan(each, algorithm.name, variant, {}) for each in (spec, other)]
                try:
                    keys = [key_of(plan) for plan in plans]
                except ValueError:
                    continue  # the variant does not suit the other size
                if keys[0] == keys[1]:
                    functions = [scheduling.packing_module(plan)[PACK] for plan in plans]
                    assert tvm_ffi.structural_equal(*functions), (algorithm.name, spec, other)
                    shared += 1

    compare()
    assert shared > 25


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float16"},
        {"bias": False},
        {"channels": 32},
        {"filters": 48},
        {"kernel": (3, 3, 2)},
        {"groups": 2},
        {"strides": (2, 1, 1)},
        # the taps along depth but the middle one see padding only
        {"size": (1, 6, 8)},
    ],
)
def test_all_that_it_depends_on_is_in_its_key(change: dict[str, Any]) -> None:
    plan = first_plan(SPEC, "direct")
    assert key_of(replace(plan, spec=replace(SPEC, **change))) != key_of(plan)


def test_so_are_variant_algorithm_and_target() -> None:
    plan, winograd = first_plan(SPEC, "direct"), first_plan(SPEC, "winograd")
    folded = replace(winograd, variant=replace(winograd.variant, modes="fpp", tile=(1, 2, 2)))
    keys = {key_of(each) for each in (plan, winograd, folded)}
    keys.add(key_of(replace(plan, variant=replace(plan.variant, vectors=plan.variant.vectors + 1))))
    keys.add(key_of(plan, cores=1))
    assert len(keys) == 5
    assert key_of(replace(plan, decisions={"depth": 2})) == key_of(plan)


def test_damaged_code_is_compiled_anew(packings: list[Plan]) -> None:
    check(Executor(accuracy="strict"), SPEC)
    for code in (folders.cache_root() / "modules").glob("*/module.o"):
        code.write_bytes(code.read_bytes()[:1000])
    loader._loaded.clear()
    check(Executor(accuracy="strict"), SPEC)
    assert len(packings) == 2


def test_code_that_packs_is_taken_where_it_lies_beside_the_convolution(packings: list[Plan]) -> None:
    plan = first_plan(SPEC, "direct")
    loaded = loader.link(build.compile_plan(plan, host_target(2), with_packing=True))
    assert loader.get_packing(loaded, plan, host_target(2)) is loaded.functions[PACK]
    assert not packings


def test_a_layer_packs_changed_weights_by_the_same_code(packings: list[Plan]) -> None:
    layer = Conv3D(4, 2, kernel_initializer="ones")
    x = np.ones((1, 3, 4, 5, 3), np.float32)
    first = layer(x)
    layer.set_weights([2 * w for w in layer.get_weights()])
    np.testing.assert_allclose(layer(x), 2 * first, rtol=1e-6)
    assert len(packings) == 1
