"""Whatever changes in an accelerated network is seen: weights, parts, attributes, types, copies."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402  (needs torch)

import tvm_conv3d.torch as ours  # noqa: E402
from torch_replays import X, check, network, replayed  # noqa: E402


def _in_place(module: Any) -> None:
    with torch.no_grad():
        module[0].conv1.weight.mul_(2)


def _data(module: Any) -> None:
    module[0].conv1.weight.data = module[0].conv1.weight.data + 0.1


def _numpy(module: Any) -> None:
    module[0].shortcut.bias.detach().numpy()[:] = 3


def _loaded(module: Any) -> None:
    module.load_state_dict({name: tensor * 1.5 for name, tensor in module.state_dict().items()})


def _assigned(module: Any) -> None:
    state = {name: tensor.clone() * 1.5 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def _statistics(module: Any) -> None:
    module[0].norm1.running_mean.add_(1)


def _replaced_parameter(module: Any) -> None:
    module[0].conv2.weight = nn.Parameter(torch.randn_like(module[0].conv2.weight))


def _replaced_part(module: Any) -> None:
    module[0].conv2 = nn.Conv3d(8, 8, 3, padding=2, dilation=2)


def _other_stride(module: Any) -> None:
    module[0].conv1.stride = module[0].shortcut.stride = (2, 2, 2)


def _other_slope(module: Any) -> None:
    module[0].act.negative_slope = 0.5


def _prelu(module: Any) -> None:
    with torch.no_grad():
        module[0].slope.weight.fill_(0.75)


def _no_bias(module: Any) -> None:
    module[0].shortcut.bias = None


def _one_more(module: Any) -> None:
    module.append(nn.Sigmoid())


@pytest.mark.parametrize(
    "change",
    [
        _in_place,
        _data,
        _numpy,
        _loaded,
        _assigned,
        _statistics,
        _replaced_parameter,
        _replaced_part,
        _other_stride,
        _other_slope,
        _prelu,
        _no_bias,
        _one_more,
    ],
)
def test_changes_are_seen(change: Callable[[Any], None]) -> None:
    fast = ours.accelerate(network(), X)
    with torch.inference_mode():
        before = fast(X)
    change(fast)
    plain = network()
    change(plain)
    if change is _replaced_part:
        plain[0].conv2.load_state_dict(fast[0].conv2.state_dict())
    if change is _replaced_parameter:
        plain.load_state_dict(fast.state_dict())
    check(fast, plain)
    check(fast, plain)
    with torch.inference_mode():
        assert fast(X).shape != before.shape or not torch.allclose(fast(X), before, rtol=1e-3)


def test_weights_that_were_one_tensor_may_be_two() -> None:
    def made() -> Any:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), nn.Conv3d(3, 3, 3, padding=1)).eval()
        module[1].weight = module[0].weight
        return module

    fast, plain = ours.accelerate(made(), X), made()
    check(fast, plain)
    fast[1].weight = plain[1].weight = nn.Parameter(torch.randn(3, 3, 3, 3, 3))
    check(fast, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: Any) -> None:
    module = network().to(dtype)
    fast = ours.accelerate(module)
    x = X.to(dtype)
    with torch.inference_mode():
        wanted = copy.deepcopy(module).double()(x.double())
        results = [fast(x) for _ in range(2)]
    bound = {torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for result in results:
        assert result.dtype == dtype
        assert float((result.double() - wanted).norm() / wanted.norm()) < bound
    assert replayed(fast) == 1


def test_the_type_may_change() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    fast.double()
    module.double()
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(fast(X.double()), module(X.double()), rtol=1e-9, atol=1e-9)


def test_copies_and_files() -> None:
    module = network()
    fast = ours.accelerate(module, X)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        twin[0].conv1.weight.zero_()
    check(twin, twin)
    check(fast, module)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    check(loaded, module)
    with torch.no_grad():
        loaded[0].conv1.weight.zero_()
    check(loaded, loaded)
    assert list(fast.state_dict()) == list(module.state_dict())


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, 3, 3, padding=1)
        self.b = nn.Conv3d(3, 3, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


@pytest.mark.parametrize("name", ["a", "b"])
def test_weights_are_untied(name: str) -> None:
    module = Tied().eval()
    fast = ours.accelerate(module, X)
    getattr(fast, name).weight = nn.Parameter(torch.randn(3, 3, 3, 3, 3))
    getattr(module, name).weight = getattr(fast, name).weight
    for _ in range(3):
        check(fast, module)
    assert replayed(fast) == 2
