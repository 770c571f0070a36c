"""Compiled functions take their arguments by name: nothing depends on which stands where."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda_checks import default_plans
from cuda_fakes import GpuArray, fake_gpu
from problems import data
from tvm_conv3d.compute.shared.argument import ROLES, Argument, Function
from tvm_conv3d.engine import algorithms, build, planner, scheduling
from tvm_conv3d.engine.algorithms import named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange, loader
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST, WEIGHT_GRADIENT, Conv3DSpec, Pads
from tvm_conv3d.support import folders
from tvm_conv3d.support.lru import Recent
from tvm_conv3d.target.cpu import host_target
from tvm_conv3d.target.resolve import resolve, traits_of
from tvm_conv3d.tuning.measure import Bench, Request, perform

LAYER = Conv3DSpec(1, (4, 6, 7), 16, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3)
GPU = "cuda:sm_80"

SPECS = (
    LAYER,
    replace(LAYER, dtype="float16", data_format=CHANNELS_FIRST),
    replace(LAYER, dilation=(2, 2, 2), size=(7, 8, 9)),
    replace(LAYER, groups=8, channels=24),
    replace(LAYER, groups=24, channels=24, data_format=CHANNELS_FIRST),
    replace(LAYER, groups=24, channels=24),
    replace(LAYER, direction=WEIGHT_GRADIENT, post_ops=()),
    replace(LAYER, direction=WEIGHT_GRADIENT, post_ops=(), groups=8),
)


def plans_of(kind: str) -> Iterator[Plan]:
    """Of each algorithm and spec that it takes, the first variant."""
    target = host_target(2) if kind == "llvm" else resolve(GPU, 1)
    for spec in SPECS:
        for algorithm in algorithms.algorithms(kind).values():
            for variant in algorithm.variants(spec, traits_of(target))[:1]:
                yield Plan(spec, algorithm.name, variant, {})


@pytest.mark.parametrize("kind", ["llvm", "cuda"])
def test_declarations_say_what_the_function_takes(kind: str) -> None:
    target = host_target(2) if kind == "llvm" else resolve(GPU, 1)
    tried = set()
    for plan in plans_of(kind):
        told = named(plan.algorithm).declare(plan.spec, plan.variant).arguments
        parameters = scheduling.scheduled_module(plan, target)["main"].params
        found = [(str(p.name), tuple(map(int, p.ty.shape)), str(p.ty.dtype)) for p in parameters]
        assert [(a.name, a.shape, a.dtype) for a in told] == found, plan
        roles = [a.role for a in told]
        if named(plan.algorithm).of_weights:
            assert roles == ["input", "gradient", "output", "output"]
        else:
            assert roles[:4] == ["input", "weights", "bias", "output"]
            assert roles[4:] == (["flags"] if kind == "llvm" and not named(plan.algorithm).exact else [])
        tried.add(plan.algorithm)
    assert tried == set(algorithms.algorithms(kind))


@pytest.fixture
def reversed_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declarations whose arguments come in another order; nothing compiled before is found."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(loader, "_loaded", Recent(1024))

    def turned(declare: Any) -> Any:
        def declare_turned(spec: Conv3DSpec, variant: Any) -> Any:
            found = declare(spec, variant)
            return replace(found, tensors=found.tensors[::-1])

        return declare_turned

    for name in ("direct", "winograd", "gemm"):
        algorithm = named(name)
        monkeypatch.setitem(vars(algorithm), "_declared", turned(algorithm.compute.declare))


@pytest.mark.usefixtures("reversed_arguments")
@pytest.mark.parametrize("accuracy", ["strict", "fast"])
def test_a_call_finds_its_arguments_in_any_order(accuracy: str) -> None:
    spec = replace(LAYER, channels=64, filters=64)
    x, kernel, bias = data(spec)
    executor = Executor(accuracy=accuracy)
    plan = executor.plan_for(spec)
    assert plan.algorithm == ("direct" if accuracy == "strict" else "winograd")
    for _ in range(2):
        # compiled, then of the cache
        result = Executor(accuracy=accuracy).convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
        assert oracle.relative_error(result, oracle.convolve(spec, x, kernel, bias)) < 1e-5
        entry = loader.get_loaded(plan, host_target(2)).main
        assert entry.function.arguments[-1].role == "input"
        loader._loaded.clear()
    # not finite: what the flags tell is found, too
    x[0, 0, 0, 0, 0] = np.inf
    result = executor.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    assert np.isinf(result[0, 0, 0, 0]).all()
    assert np.isfinite(result[0, 2:]).all()


@pytest.mark.usefixtures("reversed_arguments")
def test_so_do_the_tuner_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, target in (("llvm", host_target(2)), ("cuda", resolve(GPU, 1))):
        with fake_gpu(monkeypatch):
            plan = planner.default_plan(LAYER, target, exact=True)
            artifact = build.compile_plan(plan, target)
            assert artifact.functions["main"].arguments[0].role == "output"
            (error,) = perform(Request("error", kind, ((plan, artifact),)), Bench.of(LAYER))
            assert error < 2e-6
    x, kernel, bias = data(LAYER)
    (plan,) = default_plans([LAYER])
    assert plan.algorithm == "gemm"
    with fake_gpu(monkeypatch) as gpu:
        for source in (x, GpuArray(gpu, x)):
            result = Executor(GPU, accuracy="strict").convolve(
                LAYER, interchange.wrap(source), Weights(kernel, bias, 0)
            )
            out = result if isinstance(result, np.ndarray) else result.array
            assert oracle.relative_error(out, oracle.convolve(LAYER, x, kernel, bias)) < 2e-6


FUNCTION = Function(
    (
        Argument("out", "output", (2, 3), "float32"),
        Argument("x", "input", (6,), "uint16"),
        Argument("flags", "flags", (1,), "float32"),
    )
)


def test_values_are_put_in_order() -> None:
    assert list(FUNCTION.ordered({"x": 1, "bias": 2, "flags": 3, "out": 4})) == [4, 1, 3]
    assert list(Function(FUNCTION.arguments[:1]).ordered({"x": 1, "out": 4})) == [4]
    assert list(Function(()).ordered({"x": 1})) == []
    with pytest.raises(KeyError, match="flags"):
        FUNCTION.ordered({"x": 1, "out": 4})


def test_a_binder_looks_for_names_once() -> None:
    assert list(FUNCTION.binder("x", "bias", "flags", "out")((1, 2, 3, 4))) == [4, 1, 3]
    assert list(Function(FUNCTION.arguments[:1]).binder("x", "out")((1, 4))) == [4]
    assert list(Function(()).binder("x")((1,))) == []
    with pytest.raises(ValueError, match=r"takes flags as well\. Received: x, out"):
        FUNCTION.binder("x", "out")


def test_arguments_are_found_by_name_and_role() -> None:
    assert FUNCTION["x"].shape == (6,)
    assert FUNCTION.get("bias") is None
    assert [a.name for a in FUNCTION.of("flags", "output")] == ["out", "flags"]
    with pytest.raises(KeyError, match="bias"):
        FUNCTION["bias"]


def test_functions_survive_json_and_processes() -> None:
    assert Function.from_json(FUNCTION.to_json()) == FUNCTION
    for function in (FUNCTION, Function(FUNCTION.arguments[:1])):
        function.ordered(dict.fromkeys(ROLES, 0))
        assert pickle.loads(pickle.dumps(function)) == function


@pytest.mark.parametrize(
    ("change", "words"),
    [({"role": "eye"}, "must be one of input, weights.*Received: 'eye'"), ({"name": "out"}, "names of their own")],
)
def test_what_is_no_function_is_refused(change: dict[str, str], words: str) -> None:
    values = FUNCTION.to_json()
    values[1].update(change)
    with pytest.raises(ValueError, match=words):
        Function.from_json(values)
