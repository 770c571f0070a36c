"""Activations that call the C library, in the epilogues of convolutions and norms."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check  # noqa: E402

ACTIVATIONS = {
    "silu": nn.SiLU(inplace=True),
    "gelu:none": nn.GELU(),
    "gelu:tanh": nn.GELU("tanh"),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "elu:0.5": nn.ELU(0.5, inplace=True),
    "celu:2.0": nn.CELU(2.0),
    "selu": nn.SELU(inplace=True),
    "mish": nn.Mish(inplace=True),
    "softplus:2": nn.Softplus(2),
    "log_sigmoid": nn.LogSigmoid(),
}


def network(activation: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 8, 3), activation, nn.GroupNorm(2, 8), copy.deepcopy(activation)).eval()


@pytest.mark.parametrize("step", ACTIVATIONS)
def test_they_are_fused(step: str) -> None:
    module = network(ACTIVATIONS[step])
    fast = ours.accelerate(module, X)
    check(fast, module)
    assert fast.report.replayed[0].fused == (f"0: convolution + {step}", f"2: norm + {step} (in place)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_fused(dtype: Any) -> None:
    module, x = network(nn.SiLU()).to(dtype), X.to(dtype)
    fast = ours.accelerate(module, x)
    with torch.inference_mode():
        result, wanted = fast(x).double(), module.double()(x.double())
    assert float((result - wanted).norm() / wanted.norm()) < 4 * torch.finfo(dtype).eps
    assert "0: convolution + silu" in fast.report.replayed[0].fused


@pytest.mark.parametrize("activation", [nn.Softplus(1, threshold=5), nn.CELU(-1.0)])
def test_what_no_chain_can_have_stays_torchs(activation: Any) -> None:
    module = network(activation)
    fast = ours.accelerate(module, X)
    with torch.inference_mode():
        torch.testing.assert_close(fast(X), module(X), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert fast.report.replayed[0].fused == ("0: convolution", "2: norm")


def test_torch_has_vectors_in_float64() -> None:
    module, x = network(nn.SiLU()).double(), X.double()
    fast = ours.accelerate(module, x)
    check(fast, module, x)
    assert fast.report.replayed[0].fused == ("0: convolution", "2: norm")
