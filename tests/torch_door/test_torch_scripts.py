"""TorchScript by `accelerate`: scripted, traced, frozen and loaded modules, and modules that hold one.

The judge is the module that was compiled, in float64 by torch's own code.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import check, reasons, replayed  # noqa: E402
from torch_scripts import WAYS, UNet, X, Y, inside, made, optimized, scripted, traced  # noqa: E402


@pytest.mark.parametrize("way", WAYS)
def test_a_network(way: str) -> None:
    module = made(UNet)
    compiled = WAYS[way](module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = ours.accelerate(compiled, X)
        for x in (X, Y, Y, Y, X):
            check(fast, module, x)
    assert replayed(fast) == 2, str(fast.report)
    assert "compiled by torch.jit" in str(fast.report)
    if type(compiled) is not torch.jit.TopLevelTracedModule:
        # which torch's own copy is not, either
        assert type(fast) is type(compiled)
    fused = [line.partition(": ")[2] for line in fast.report.replayed[0].fused]
    # as of the module itself, but that torch.jit.freeze folds batch norms
    folded = "" if way.startswith("frozen") else "batch norm + "
    block = ["convolution", "norm + leaky_relu:0.1 (in place)", "convolution", f"convolution + {folded}add + relu"]
    up = ["transposed convolution", "norm + hard_silu (in place)"]
    assert fused == [*block, *block, *up, *block, "convolution"]


def test_counters() -> None:
    fast = ours.accelerate(scripted(made(UNet)), X)
    ours.reset_counters()
    with torch.inference_mode():
        fast(X)
    assert ours.counters().torch == {} and ours.counters().ours >= 14


def test_half_types() -> None:
    module = made(UNet).bfloat16()
    fast = ours.accelerate(traced(module, X.bfloat16()))
    with torch.inference_mode():
        wanted = copy.deepcopy(module).double()(X.bfloat16().double())
        for _ in range(3):
            result = fast(X.bfloat16())
    assert result.dtype == torch.bfloat16 and float((result - wanted).norm() / wanted.norm()) < 2e-2
    assert replayed(fast) == 1


def test_values_that_are_not_finite() -> None:
    module = made(UNet)
    fast = ours.accelerate(scripted(module), X)
    for value in (float("nan"), float("inf")):
        x = X.clone()
        x[0, 0, 3, 3, 3] = value
        with torch.inference_mode():
            assert torch.equal(fast(x).isnan(), module(x).isnan())


def test_no_volumes() -> None:
    module = made(nn.Conv3d, 2, 3, 3)
    fast = ours.accelerate(scripted(module), X)
    with torch.inference_mode():
        for _ in range(3):
            assert fast(X[:0]).shape == (0, 3, 10, 6, 14)
        with pytest.raises(RuntimeError, match="expected input"):
            fast(X[:, :1])


@pytest.mark.parametrize("way", ["scripted", "traced", "loaded", "inside of a module"])
def test_weights_are_shared(way: str) -> None:
    module = made(UNet)
    compiled = WAYS[way](module)
    fast = ours.accelerate(compiled, X)
    held, same = (dict(each.named_parameters()) | dict(each.named_buffers()) for each in (compiled, fast))
    assert len(held) > 20 and held.keys() == same.keys() and all(held[name] is same[name] for name in held)
    for factor in (1.5, 0.5):
        with torch.no_grad():
            compiled.load_state_dict({name: tensor * factor for name, tensor in compiled.state_dict().items()})
        state = {
            name.removeprefix("0.") if way == "inside of a module" else name: value for name, value in held.items()
        }
        module.load_state_dict(state)
        check(fast, module, X)
    assert replayed(fast) == 1 and fast.report.by_layers == {}


def test_a_weight_is_another() -> None:
    module = made(UNet)
    fast = ours.accelerate(scripted(module), X)
    fast.head.weight = module.head.weight = nn.Parameter(torch.randn(3, 8, 1, 1, 1))
    check(fast, module, X)
    assert len(fast.report.replayed) == 1
    fast.head.weight = module.head.weight = nn.Parameter(torch.randn(5, 8, 1, 1, 1))
    fast.head.bias = module.head.bias = nn.Parameter(torch.randn(5))
    for _ in range(3):
        check(fast, module, X)
    assert replayed(fast) == 2


def test_the_module_is_not_touched() -> None:
    compiled = scripted(made(UNet))
    before = dict(vars(compiled))
    fast = ours.accelerate(compiled, X)
    assert vars(compiled) == before
    fast.train()
    assert fast.training and not compiled.training and not compiled.down.training
    # two accelerated ones of one module do not see each other's modes, either
    assert not ours.accelerate(compiled).training


def test_copies_are_fast_and_on_their_own() -> None:
    module = made(UNet)
    fast = ours.accelerate(scripted(module), X)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        fast.head.weight.mul_(2)
    assert twin.head.weight is not fast.head.weight and twin.report is not fast.report
    check(twin, made(UNet), X)
    check(twin, made(UNet), Y)
    check(fast, module, X)
    assert twin.forward is not fast.forward and replayed(twin) == 2
    held = copy.deepcopy(ours.accelerate(inside(module), X))
    for _ in range(3):
        check(held, module, X)
    assert replayed(held) == 2


def test_training_and_gradients_are_torchs() -> None:
    module = made(UNet)
    compiled = scripted(module)
    fast = ours.accelerate(compiled, X)
    fast(X).square().sum().backward()
    found = compiled.head.weight.grad.clone()
    compiled.zero_grad()
    module(X).square().sum().backward()
    torch.testing.assert_close(found, module.head.weight.grad, rtol=1e-4, atol=1e-5)
    fast.train()
    before = fast.down.norm2.running_mean.clone()
    fast(X)
    assert not torch.equal(before, fast.down.norm2.running_mean)
    assert "gradients are enabled" in reasons(fast) and "training" in reasons(fast)


def test_it_is_saved_as_what_it_was(tmp_path: Any) -> None:
    module = made(UNet)
    fast = ours.accelerate(scripted(module), X)
    fast.save(str(tmp_path / "module.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(torch.jit.load(str(tmp_path / "module.pt")), module, X)


def test_optimized_scripts_go_by_layers() -> None:
    module = made(UNet)
    fast = ours.accelerate(optimized(module), X)
    check(fast, module, X)
    assert "torch.jit.optimize_for_inference" in reasons(fast), reasons(fast)
