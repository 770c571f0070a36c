"""Ever new sizes: which plans are compiled at the first, the second and the third call of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_fakes import fake_gpu
from tvm_conv3d import Conv3D, conv3d, get_num_threads, set_num_threads
from tvm_conv3d.engine import build, cache
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.functional import convolution
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import executor, loader, new_sizes
from tvm_conv3d.spec import Conv3DSpec, Pads
from tvm_conv3d.support import folders
from tvm_conv3d.support.lru import Recent

FIRST, NEW, OTHER = (1, 8, 14, 14, 32), (1, 9, 12, 15, 32), (1, 7, 16, 13, 32)
#: Relative error of a result, whichever plan it is of.
BOUND = 1e-5


@pytest.fixture(autouse=True)
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """The plans that are compiled, with nothing on disk or in memory before."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(loader, "_loaded", Recent(1024))
    plans: list[Plan] = []
    real = build.compile_plan

    def noting(plan: Plan, target: Any) -> Artifact:
        plans.append(plan)
        return real(plan, target)

    monkeypatch.setattr(build, "compile_plan", noting)
    before = get_num_threads()
    yield plans
    set_num_threads(before)


def layer_of(**options: Any) -> Conv3D:
    layer = Conv3D(32, 3, padding="same", activation="relu", bias_initializer="ones", **options)
    layer.build(FIRST)
    return layer


def data(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(layer: Conv3D, x: np.ndarray, result: np.ndarray) -> None:
    kernel, bias = layer.get_weights()
    expected = np.maximum(oracle.convolve(layer.plan_for(x.shape).spec, x, kernel, bias), 0)
    assert oracle.relative_error(result, expected) < BOUND


def algorithms(plans: list[Plan]) -> list[str]:
    return [plan.algorithm for plan in plans]


def test_the_first_size_is_at_its_best_at_once(compiled: list[Plan]) -> None:
    layer = layer_of()
    for _ in range(2):
        check(layer, data(FIRST), layer(data(FIRST)))
    assert compiled == [layer.plan_for(FIRST)]
    assert algorithms(compiled) == ["winograd"]


def test_first_sizes_of_functions_with_one_executor_are_at_their_best(
    compiled: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no further sizes of each other; another size of one of them is."""
    monkeypatch.setattr(convolution, "_executors", Recent(2))
    monkeypatch.setattr(convolution, "_calls", Recent(8))
    for shape, filters in ((FIRST, 32), (FIRST, 48), (NEW, 48)):
        x, kernel = data(shape), data((3, 3, 3, shape[-1], filters), seed=1)
        spec = Conv3DSpec(shape[0], shape[1:4], shape[4], filters, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)
        error = oracle.relative_error(conv3d(x, kernel, padding=1), oracle.convolve(spec, x, kernel))
        assert error < BOUND
    assert algorithms(compiled[:2]) == ["winograd"] * 2
    assert len(compiled) == 3 and named(compiled[2].algorithm).exact


@pytest.mark.parametrize("shape", [NEW, (2, *FIRST[1:])])
def test_a_further_size_is_at_its_best_from_its_second_call_on(compiled: list[Plan], shape: tuple[int, ...]) -> None:
    layer, x = layer_of(), data(shape)
    layer(data(FIRST))
    compiled.clear()
    results = []
    for count in (1, 2, 2):
        results.append(layer(x))
        check(layer, x, results[-1])
        assert len(compiled) == count
        assert layer.plan_for(shape).algorithm == "winograd"
    first, second = compiled
    assert named(first.algorithm).exact
    assert second == layer.plan_for(shape)
    np.testing.assert_array_equal(results[1], results[2])


def test_first_calls_of_several_sizes_do_not_count_for_each_other(compiled: list[Plan]) -> None:
    layer = layer_of()
    for shape in (FIRST, NEW, OTHER, NEW, OTHER):
        check(layer, data(shape), layer(data(shape)))
    assert algorithms(compiled) == ["winograd", "direct", "direct", "winograd", "winograd"]


@pytest.mark.parametrize("forgets", [True, False])
def test_what_is_compiled_already_is_taken_at_once(compiled: list[Plan], forgets: bool) -> None:
    layer_of()(data(NEW))
    if forgets:
        # as in another process, which finds it on disk
        loader._loaded.clear()
    layer = layer_of()
    layer(data(FIRST))
    compiled.clear()
    check(layer, data(NEW), layer(data(NEW)))
    assert not compiled


def test_strict_layers_have_one_plan_a_size(compiled: list[Plan]) -> None:
    layer = layer_of(accuracy="strict")
    for shape in (FIRST, NEW, NEW):
        layer(data(shape))
    assert compiled == [layer.plan_for(FIRST), layer.plan_for(NEW)]


def test_a_best_plan_that_is_exact_needs_no_other(compiled: list[Plan]) -> None:
    layer = Conv3D(32, 1)
    for shape in (FIRST, NEW, NEW):
        layer(data(shape))
    assert compiled == [layer.plan_for(FIRST), layer.plan_for(NEW)]
    assert named(compiled[1].algorithm).exact


def test_large_sizes_are_worth_their_best_plan(compiled: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition would take longer there than compiling anything."""
    monkeypatch.setattr(new_sizes, "MAX_CYCLES", 1e5)
    layer = layer_of()
    for shape in (FIRST, NEW):
        layer(data(shape))
    assert algorithms(compiled) == ["winograd", "winograd"]


def test_without_an_exact_plan_within_the_limit(compiled: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    real = executor.make_plan

    def limited(*arguments: Any, exact: bool = False, **options: Any) -> Plan:
        if exact:
            raise ValueError("too much")
        return real(*arguments, **options)

    monkeypatch.setattr(executor, "make_plan", limited)
    layer = layer_of()
    for shape in (FIRST, NEW):
        check(layer, data(shape), layer(data(shape)))
    assert algorithms(compiled) == ["winograd", "winograd"]


def test_the_limit_of_workspace_holds_for_every_call(compiled: list[Plan]) -> None:
    limit = 400 << 10
    layer = layer_of(workspace_limit=limit)
    for shape in (FIRST, NEW, NEW):
        check(layer, data(shape), layer(data(shape)))
    assert algorithms(compiled) == ["direct", "direct"]
    needs = [cache.workspace(folder.name) for folder in (folders.cache_root() / "modules").iterdir()]
    assert len(needs) == 2
    for need in filter(None, needs):
        assert need.per_thread(get_num_threads()) <= limit


def test_another_number_of_threads_is_no_further_size(compiled: list[Plan]) -> None:
    layer = layer_of()
    for count in (2, 1):
        set_num_threads(count)
        layer(data(FIRST))
    assert algorithms(compiled) == ["winograd", "winograd"]


def test_what_is_not_finite_stays_in_its_windows_at_every_call(compiled: list[Plan]) -> None:
    layer, x = layer_of(), data(NEW)
    x[0, 4, 5, 6, 7] = np.nan
    layer(data(FIRST))
    for _ in range(3):
        result = layer(x)
        assert np.isnan(result[0, 3:6, 4:7, 5:8]).all()
        assert np.isnan(result).sum() == 27 * 32
    assert algorithms(compiled) == ["winograd", "direct", "winograd"]


def test_several_threads_meet_a_further_size(compiled: list[Plan]) -> None:
    """All first calls share one compile of the quick plan, all later ones one of the best."""
    layer, x = layer_of(), data(NEW)
    layer(data(FIRST))
    compiled.clear()
    together = threading.Barrier(4)

    def call(_: int) -> np.ndarray:
        together.wait()
        return layer(x)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for result in pool.map(call, range(4)):
                check(layer, x, result)
        later = list(pool.map(call, range(4)))
    assert sorted(algorithms(compiled)) == ["direct", "winograd"]
    for result in later:
        np.testing.assert_array_equal(result, later[0])


def test_a_gpu_s_further_sizes_hurry_too(compiled: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(target="cuda")
    with fake_gpu(monkeypatch):
        for shape in (FIRST, NEW, NEW, NEW):
            check(layer, data(shape), layer(data(shape)))
        assert compiled[2] == layer.plan_for(NEW)
    assert algorithms(compiled) == ["winograd_gemm", "gemm", "winograd_gemm"]
