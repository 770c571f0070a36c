"""The cases of Keras's semantics that the CPU's tests have, on GPUs: by every algorithm, and by whole layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cuda_checks import assert_right, default_plans, forward_algorithms
from cuda_fakes import fake_gpu
from keras_cases import CALLS, FORWARD, expected, grid, input_shape, spec_of
from problems import BOUNDS, data
from tvm_conv3d import Conv3D
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import Conv3DSpec
from tvm_conv3d.target.gpu import ARCHITECTURES


def plans_of(spec: Conv3DSpec) -> list[Plan]:
    """One of each algorithm that takes it; on tensor cores in float16, by Winograd's with the channels it wants."""
    looks: dict[str, dict[str, Any]] = {name: {} for name in algorithms("cuda")}
    looks["tensor_gemm"] = {"dtype": "float16"}
    looks["winograd_gemm"] = {"channels": 16, "filters": 16} if spec.groups == 1 else {}
    found = []
    for name, changes in looks.items():
        changed = replace(spec, **changes)
        variants = algorithms("cuda")[name].variants(changed, ARCHITECTURES["sm_80"])
        found += [Plan(changed, name, variant, {}) for variant in variants[:1]]
    return found


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.deep)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_grid_by_every_algorithm(padding: str, data_format: str, every: int, machine: str) -> None:
    wanted: dict[str, Any] = {"padding": padding, "data_format": data_format}
    cases = [arguments for arguments in grid() if arguments.items() >= wanted.items()]
    plans = [plan for arguments in cases[::every] for plan in plans_of(spec_of(arguments))]
    assert {plan.algorithm for plan in plans} == forward_algorithms()
    assert_right(plans, machine=machine)


@pytest.mark.parametrize("arguments", FORWARD + CALLS, ids=str)
def test_layers(arguments: dict[str, Any], machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy in, NumPy out, by way of the first GPU."""
    given = {"filters": 4, "kernel_size": (3, 2, 2), **arguments}
    x = np.random.default_rng(0).standard_normal(input_shape(given)).astype("float32")
    layer = Conv3D(**given, target="cuda")
    layer.build(x.shape)
    _, kernel, bias = data(spec_of(given))
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    if machine == "gpu":
        y = layer(x)
    else:
        with fake_gpu(monkeypatch) as fake:
            y = layer(x)
            assert fake.launched
    assert isinstance(y, np.ndarray) and y.shape == layer.compute_output_shape(x.shape)
    # the input is rounded to bfloat16 before
    bound = 1e-2 if layer.compute_dtype == "bfloat16" else BOUNDS[layer.compute_dtype]
    assert oracle.relative_error(y, expected(layer, x)) < bound


def test_the_same_checks_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pytest -m gpu` does, with a GPU that is the CPU: right plans pass, and wrong ones do not."""
    layers = [spec_of({"filters": filters, "kernel_size": 3}) for filters in (4, 12)]
    layers += [replace(layers[1], dtype="bfloat16"), replace(layers[1], size=(4, 16, 16), channels=32, filters=64)]
    plans = default_plans(layers)
    assert {plan.algorithm for plan in plans} == forward_algorithms()
    with fake_gpu(monkeypatch) as fake:
        assert_right(plans, machine="gpu")
        assert len(fake.launched) >= len(plans)
        # no product at all
        monkeypatch.setattr(fake, "launch", lambda *_: None)
        with pytest.raises(AssertionError, match="nan"):
            assert_right(plans[:1], machine="gpu")
