"""Whole networks: each convolution is replaced, the given module is as before, and the report tells."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tvm_conv3d.torch as ours  # noqa: E402  (needs torch)

X = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(torch.nn.Conv3d):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.ReLU())
        self.again = self.stem
        self.scaled = Scaled(4, 4, 1)
        self.up = torch.nn.ConvTranspose3d(4, 2, 2, stride=2)
        # out of torch's sight
        self.path = [self.stem[0], self.stem[1]]
        self.seen: list[Any] = []
        self.up.register_forward_hook(self.note)
        self.mask = torch.ones(1)

    def note(self, _: Any, given: Any, result: Any) -> None:
        self.seen.append(tuple(result.shape))

    def forward(self, x: Any) -> Any:
        return self.up(self.scaled(self.again(x) + self.path[1](self.path[0](x)))) * self.mask


def network() -> Any:
    torch.manual_seed(0)
    return Network().eval()


def test_convolutions_are_replaced_wherever_they_are() -> None:
    module = network()
    wanted = module(X)
    ours.reset_counters()
    fast = ours.accelerate(module)
    report = fast.report
    torch.testing.assert_close(fast(X), wanted, rtol=1e-4, atol=1e-5)
    # the stem, the same by another path, and the way up
    assert ours.counters().ours == 3
    assert fast.path[0] is fast.stem[0] is fast.again[0]
    assert report.replaced == ("stem.0", "up")
    assert report.left == {"scaled": "Scaled is a subclass, which may compute something else"}
    lines = str(report).splitlines()
    assert lines[0] == "2 convolutions replaced, 1 left alone"
    assert "  replaced: up" in lines and any(line.startswith("  left: scaled: Scaled is a") for line in lines)


def test_the_given_module_is_not_touched() -> None:
    module = network()
    before = [type(part) for part in module.modules()]
    fast = ours.accelerate(module)
    assert [type(part) for part in module.modules()] == before
    fast(X)
    assert len(fast.seen) == 1 and not module.seen
    fast.train()
    assert not any(part.training for part in module.modules())


def test_weights_are_shared() -> None:
    module = network()
    fast = ours.accelerate(module)
    tensors = zip((*module.parameters(), *module.buffers()), (*fast.parameters(), *fast.buffers()), strict=True)
    assert all(one is other for one, other in tensors)
    fast(X).square().sum().backward()
    torch.optim.SGD(fast.parameters(), 1e-4).step()
    torch.testing.assert_close(fast(X), module(X), rtol=1e-4, atol=1e-4)
    assert fast.mask is not module.mask
    assert list(fast.state_dict()) == list(module.state_dict())


def test_a_single_convolution() -> None:
    conv = torch.nn.Conv3d(2, 3, 3)
    fast = ours.accelerate(conv)
    report = fast.report
    assert type(fast) is ours.Conv3d and fast.weight is conv.weight
    assert report.replaced == ("",)
    assert "replaced: (the module itself)" in str(report)
    # nothing is left to do
    again = ours.accelerate(fast)
    report = again.report
    assert type(again) is ours.Conv3d and report == ours.Report()


def test_parametrized_convolutions_are_left_alone() -> None:
    module = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv3d(2, 3, 3)))
    fast = ours.accelerate(module)
    report = fast.report
    torch.testing.assert_close(fast(X), module(X))
    assert report.replaced == () and list(report.left) == ["0"]


def test_accelerated_networks_are_compiled_and_copied() -> None:
    module = network()
    fast = ours.accelerate(module)
    twin = copy.deepcopy(fast)
    assert twin.stem[0].weight is not fast.stem[0].weight
    torch.testing.assert_close(twin(X), module(X), rtol=1e-4, atol=1e-5)


def test_only_modules_are_taken() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module. Received: <class 'function'>"):
        ours.accelerate(lambda x: x)


def test_a_network_of_monai() -> None:
    nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed")
    torch.manual_seed(0)
    module = nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16])
    module.eval()
    fast = ours.accelerate(module)
    report = fast.report
    kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    assert len(report.replaced) == sum(type(part) in kinds for part in module.modules()) > 4
    assert report.left == {}
    ours.reset_counters()
    with torch.inference_mode():
        x = torch.randn(1, 1, 16, 16, 16)
        torch.testing.assert_close(fast(x), module(x), rtol=1e-3, atol=1e-4)
    assert ours.counters().ours >= len(report.replaced) and not ours.counters().torch
