"""Targets as values: the same whether TVM has seen them or not."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import tvm.target

from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import resolve

ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
TARGETS: dict[str, Any] = {
    "this machine": None,
    "processor": {"kind": "llvm", "mcpu": "haswell"},
    "whole vectors": {"kind": "llvm", "mcpu": "sapphirerapids"},
    # TVM derives features of its own for these
    "arm": {**ARM, "mcpu": "neoverse-n1"},
    "features": {**ARM, "mattr": ["+sve"]},
    "riscv": {"kind": "llvm", "mtriple": "riscv64-linux-gnu"},
    "gpu": "cuda:sm_90",
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_goes_to_tvm_and_back(name: str) -> None:
    target = resolve(TARGETS[name], 2)
    made = target.as_tvm()
    assert isinstance(made, tvm.target.Target)
    assert Target.of_tvm(made) == target
    assert resolve(made, 2) == resolve(target, 2) == target
    assert {pickle.loads(pickle.dumps(target)): 1}[target] == 1


def test_a_target_tells_its_parts() -> None:
    target = resolve({**ARM, "mcpu": "neoverse-v1", "mattr": ["-sve"], "num-cores": 3}, 2)
    parts = (target.kind, target.cpu, target.triple, target.attributes, target.cores, target.arch)
    assert parts == ("llvm", "neoverse-v1", "aarch64-linux-gnu", ("-sve",), 3, "")
    gpu = resolve("cuda:sm_80", 2)
    assert (gpu.kind, gpu.arch, gpu.cores, gpu.cpu) == ("cuda", "sm_80", None, "")


def test_targets_of_tvm_are_taken_as_they_are() -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
    assert resolve(target, 2) == Target.of_tvm(target)
    assert resolve(target, 2).cores is None
    with_host = resolve({"kind": "llvm", "mcpu": "haswell", "host": target}, 2)
    assert with_host.cpu == "haswell" and with_host.cores == 2
