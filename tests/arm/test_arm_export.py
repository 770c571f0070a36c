"""Exported modules for ARM, by the names that their description gives: on clean data, and such that needs `exact`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arm_on_cpu import MACHINES, Call, Machine, Tensor, link, missing, run
from problems import BOUNDS, WINOGRAD_BOUND, data
from sampling import sampled
from tvm_conv3d.compute.shared.argument import Function
from tvm_conv3d.deploy.export import export
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, Conv3DSpec, Pads

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

LAYER = Conv3DSpec(1, (6, 10, 12), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("sigmoid",))

LAYERS = {
    "winograd": LAYER,
    "float16": replace(LAYER, dtype="float16", data_format=CHANNELS_FIRST, size=(6, 12, 16)),
    "bfloat16": replace(LAYER, dtype="bfloat16", groups=2),
    "gradient": replace(LAYER, channels=24, direction=DATA_GRADIENT),
    "exact": replace(LAYER, dtype="float64"),
}


class Exported:
    """A module and its description."""

    def __init__(self, spec: Conv3DSpec, machine: Machine, folder: Path) -> None:
        export(spec, machine.config, folder, cores=2)
        self.machine, self.about = machine, json.loads((folder / "meta.json").read_text())
        self.functions = {name: Function.from_json(each) for name, each in self.about["functions"].items()}
        self.program = link((folder / "module.o").read_bytes(), list(self.functions))

    def call(self, name: str, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        """What a function of the module gives."""
        function = self.functions[name]
        made = {
            a.name: np.full(math.prod(a.shape) * np.dtype(a.dtype).itemsize, 0xFF, np.uint8).view(a.dtype)
            for a in function.of("output", "flags")
        }
        given = {a.name: arrays[a.name] for a in function.arguments if a.name not in made}
        tensors = [Tensor(a.name, a.shape, a.dtype) for a in function.arguments]
        after = run(self.program, self.machine, [Call(name, tensors)], {**given, **made})
        return {name: after[name] for name in made}


@pytest.mark.parametrize(("name", "machine"), sampled([(n, m) for n in LAYERS for m in MACHINES], 11), ids=str)
def test_by_names(name: str, machine: Machine, tmp_path: Path) -> None:
    spec = LAYERS[name]
    exported = Exported(spec, machine, tmp_path)
    x, kernel, bias = data(spec)
    spoiled = x.copy()
    spoiled.reshape(-1)[:: x.size // 5] = np.resize([np.nan, np.inf, -np.inf], len(spoiled.reshape(-1)[:: x.size // 5]))
    packed = exported.call(exported.about["entry"]["pack"], {"kernel": kernel, "bias": bias})
    weights = {key.removeprefix("packed_"): array for key, array in packed.items()}
    for given in (x, spoiled):
        out = exported.call(exported.about["entry"]["convolve"], {**weights, "x": given})["out"]
        found = out.view(x.dtype).reshape(spec.output_shape).astype(np.float64)
        with np.errstate(invalid="ignore"):
            expected = oracle.finish(spec, oracle.convolve(spec, given, kernel, bias))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        assert np.isnan(expected).any() == (given is spoiled)
        there = np.isfinite(expected)
        assert oracle.relative_error(found[there], expected[there]) < max(BOUNDS[spec.dtype], WINOGRAD_BOUND)
